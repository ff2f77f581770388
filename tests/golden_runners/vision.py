"""Runners of methods that act before the LLM."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPAttention

from golden_runners.anyres import canvas_shape, next_image, packed
from golden_runners.case import LLAVA, QWEN, Case, Failed, acting, check_exact, positions, sequence, view
from vlmprune.core.budget import resolve_keep
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.view import Grid, ImageView, Merged, TowerRows
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.methods.vision.random import Random
from vlmprune.methods.vision.visionzip import VisionZip
from vlmprune.models.qwen2_5_vl import merged_raster
from vlmprune.runtime.select import choose
from vlmprune.runtime.taps import capture
from vlmprune.scores import attention_rows, received_attention, reference

HALF_PRECISION_SHARE = 0.95  # of the picks: near ties of half-precision products fall differently on other hardware


def _tile_groups(features: Tensor) -> list[tuple[int, Tensor]]:
    """UniPruneBench's split of [tiles, N, D]: tile 0, and all other tiles as one pool; each with its first index."""
    tiles, size, width = features.shape
    rest = [(size, features[1:].reshape(-1, width))] if tiles > 1 else []
    return [(0, features[0]), *rest]


def random_pre(case: Case) -> None:
    ordered, kept, skipped = [], [], 0
    for first, pool in _tile_groups(case.input("features")):
        n = len(pool)
        keep = max(1, int(n * case["keep_ratio"]))
        image = _SharedGenerator(keep, torch.arange(n), None, LLAVA, seed=case["torch_seed"])
        image.drawn = skipped
        skipped += n
        ordered.append(top_k(Random().score(image), keep) + first)
        kept.append(Random().select(image) + first)
    case.expect("kept_order", torch.cat(ordered))  # the authors leave them shuffled
    case.expect("kept_sorted", torch.cat(kept))
    case.expect_setting("selected_true", len(torch.cat(kept)))


class _SharedGenerator(ImageView):
    """The authors draw all pools from one generator; a view's own is fresh each time."""

    drawn = 0

    def generator(self) -> torch.Generator:
        generator = super().generator()
        if self.drawn:
            torch.randperm(self.drawn, generator=generator)
        return generator


def divprune(case: Case) -> None:
    features, dtype = case.input("features"), case.get("dtype", "float32")
    n = len(features)
    keep = resolve_keep(float(case["keep_ratio"]), n)
    case.expect_setting("keep_num", keep)
    image = view(n, keep, {"features": features})
    official = DivPrune(score_dtype=dtype, compat="official")
    picks = official.picks(image)
    for name, indices in (("kept_order", picks), ("kept_sorted", ascending(picks))):
        if dtype == "float32":
            case.expect(name, indices)
        else:
            case.expect_nearly(name, indices, HALF_PRECISION_SHARE)
    distinct = official.select(image)
    case.expect_setting("unique_kept", len(distinct))
    if not torch.equal(distinct, picks.unique()):
        raise Failed("select differs from the picks")
    kept = DivPrune(score_dtype=dtype).select(image)
    check_exact(kept, keep, n)
    if len(distinct) == keep and not torch.equal(kept, distinct):
        raise Failed("the default differs from the authors' result, which has no duplicates")


def divprune_tiles(case: Case) -> None:
    kept = []
    for first, pool in _tile_groups(case.input("features")):
        image = view(len(pool), resolve_keep(float(case["keep_ratio"]), len(pool)), {"features": pool})
        kept.append(DivPrune().select(image) + first)
    case.expect("kept_order", torch.cat(kept))  # the wrapper sorts each pool
    case.expect("kept_sorted", ascending(torch.cat(kept)))
    case.expect_setting("selected_true", len(torch.cat(kept)))


def hiprune(case: Case) -> None:
    kind = case["kind"]
    if kind.startswith("qwen"):
        _hiprune_qwen(case)
    elif kind.startswith(("llava", "anyres")):
        _hiprune_llava(case)
    else:
        raise Failed(f"unknown kind {kind!r}")


def _hiprune_llava(case: Case) -> None:
    # received attention: mean over heads and all queries, the CLS key dropped
    middle, deep = (case.input(name).mean((1, 2))[:, 1:] for name in ("mid_attn", "deep_attn"))
    images, n = middle.shape
    side = math.isqrt(n)
    budget = int(case["retention"] / case.get("num_images_in_batch", images))
    case.expect_setting("per_image_budget", budget)
    case.expect_setting("n_anchor", round(budget * case["alpha"] / 5))
    official, default = (HiPrune(alpha=case["alpha"], compat=compat) for compat in ("official", "paper"))
    kept = []
    for i in range(images):
        image = view(n, budget, {"object": middle[i], "deep": deep[i]}, grid=Grid(side, side))
        exact = default.select(image)
        check_exact(exact, budget, n)
        if "official_raises" in case.settings:
            continue
        kept.append(official.select(image))
        if len(kept[-1]) == budget and not torch.equal(exact, kept[-1]):
            raise Failed(f"image {i}: the default differs from the authors' result, which keeps the budget")
    if not kept:
        return
    if "expected_packed_tile_row_col" in case:
        case.expect("expected_packed_tile_row_col", packed(case, kept, side))
        return
    case.expect("expected_sorted", torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=-1))
    case.expect("expected_count", torch.tensor([len(tokens) for tokens in kept]))
    case.expect("expected_anchor_buffer_last", official.parts(image)[0])
    case.expect("expected_as_produced_last", kept[-1])  # a boolean mask: in order of position


def _hiprune_qwen(case: Case) -> None:
    rows, cols = case["merged_grid"]
    n = rows * cols
    if "window_index" in case:
        # mean over heads and queries, patches in window order
        maps = [case.input(name).mean((0, 1)) for name in ("mid_attn", "deep_attn")]
        window_index = case.input("window_index")
        middle, deep = (merged_raster(values, window_index) for values in maps)
        queries = len(maps[0])
        case.expect("expected_mid_scores", middle * queries)
        case.expect("expected_deep_scores", deep * queries)
    else:
        # the authors sum over the queries, four patches a slot
        middle, deep = (case.input(name) / (4 * n) for name in ("mid_scores", "deep_scores"))
    budget = resolve_keep(float(case["retention_ratio"]), n)
    case.expect_setting("budget", budget)
    case.expect_setting("n_anchor", round(budget * case["alpha"] / 5))
    image = view(n, budget, {"object": middle, "deep": deep}, QWEN, Grid(rows, cols))
    official, default = (HiPrune(alpha=case["alpha"], compat=compat) for compat in ("official", "paper"))
    kept = official.select(image)
    case.expect("expected_sorted", kept)
    case.expect_setting("kept_unique", len(kept))
    near, registers = official.parts(image)
    case.expect("expected_anchor_buffer", near)
    produced = torch.from_numpy(case.arrays["expected_as_produced"])
    case.arrays["expected_as_produced"] = torch.cat([ascending(produced[: len(near)]), produced[len(near) :]]).numpy()
    case.expect("expected_as_produced", torch.cat([near, registers]))
    before, after = case["n_text_before"], case["n_text_after"]
    columns = sequence(kept, before, n, after)
    case.expect("expected_seq_positions", columns)
    case.expect("expected_position_ids_row0", positions(official, QWEN, columns))
    exact = default.select(image)
    check_exact(exact, budget, n)
    if len(kept) == budget and not torch.equal(exact, kept):
        raise Failed("the default differs from the authors' result, which keeps the budget")


def visionzip(case: Case) -> None:
    kind = case["kind"]
    if kind == "key_metric":
        _clip_keys(case)
        return
    attention, hidden, keys = case.input("cls_attn"), case.input("hidden"), case.input("metric")
    total = case["dominant"] + case["contextual"]
    case.expect_setting("total", total)
    case.expect_setting("num_tiles", len(hidden))
    method = VisionZip(contextual=case["contextual"])
    parts, merged = [], []
    for i in range(len(hidden)):
        signals = {
            "rows": TowerRows(hidden[i, 1:], hidden[i, :1]),
            "keys": TowerRows(keys[i, 1:], keys[i, :1]),
            "attention": attention[i].mean(0)[1:],
        }
        image = view(hidden.shape[1] - 1, total, signals)
        parts.append(method.clusters(image))
        merged.append(method.select(image))
        if len(merged[-1].features) != total:
            raise Failed(f"{len(merged[-1].features)} tokens instead of {total}")
    if "official_raises" in case.settings:
        return
    dominant = case["dominant"]
    if "expected_packed_features" in case:
        signals = {
            "rows": TowerRows(hidden[:, 1:], hidden[:, 0]),
            "keys": TowerRows(keys[:, 1:], keys[:, 0]),
            "attention": attention.mean(1)[:, 1:],
        }
        keep = total * len(hidden)
        image = next_image(signals, canvas_shape(case), hidden.shape[1] - 1, keep)
        packed_tokens = choose(acting(method, keep, image))
        assert isinstance(packed_tokens, Merged)
        case.expect("expected_packed_features", packed_tokens.features)
        return
    case.expect("expected_as_produced", torch.stack([part.dominant for part in parts]))
    case.expect("expected_dominant_sorted", torch.stack([result.anchors[:dominant] + 1 for result in merged]))
    case.expect("expected_target_idx", torch.stack([result.anchors[dominant:] + 1 for result in merged]))
    case.expect("expected_merged_idx", torch.stack([part.members for part in parts]))
    case.expect("expected_assignment", torch.stack([part.assignment for part in parts]))
    case.expect("expected_features", torch.stack([result.features for result in merged]))


def _clip_keys(case: Case) -> None:
    """The keys that the library's tap reads in transformers' own CLIP attention, and statistics made of them."""
    hidden = case.input("hidden_states")
    config = CLIPVisionConfig(hidden_size=hidden.shape[-1], num_attention_heads=case["num_heads"])
    config._attn_implementation = "sdpa"
    module = CLIPAttention(config).eval()
    with torch.no_grad():
        for projection, name in ((module.q_proj, "q"), (module.k_proj, "k")):
            projection.weight.copy_(case.input(f"{name}_w"))
            projection.bias.copy_(case.input(f"{name}_b"))
        with capture([module]) as calls:
            module(hidden)
    (call,) = calls[module]
    maps = reference.attention(call.query, call.key, call.scaling)
    case.expect("expected_attn", maps)
    case.expect("expected_metric", call.key.mean(1))
    for statistic, mean in ((attention_rows, maps.mean(1)), (received_attention, maps.mean((1, 2)))):
        if not torch.allclose(statistic(call.query, call.key, call.scaling), mean, atol=1e-6):
            raise Failed(f"{statistic.__name__} differs from the mean of the maps")
