"""Runners of methods that go by what the encoder's CLS token attends to: FasterVLM, VisPruner, PruMerge(+), HiRED."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from golden_runners.anyres import TILE, next_image, packed
from golden_runners.case import Case, Failed, Runner, check_exact, view
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.selectors import top_k
from vlmprune.core.view import Grid, ImageView, Merged, TowerRows
from vlmprune.methods.vision.fastervlm import FasterVLM
from vlmprune.methods.vision.hired import HiRED
from vlmprune.methods.vision.prumerge import PruMerge
from vlmprune.methods.vision.prumerge_plus import PruMergePlus
from vlmprune.methods.vision.vispruner import VisPruner
from vlmprune.scores import attention_rows, reference


def _refused(case: Case, method: Method, image: ImageView) -> None:
    """Where the authors' code fails, `compat="official"` says so in a sentence."""
    try:
        method.select(image)
    except UserError:
        return
    raise Failed(f"compat='official' does not refuse what fails with {case['official_raises']!r}")


def _grid(n: int) -> Grid:
    side = math.isqrt(n)
    if side * side != n:
        raise Failed(f"{n} patches are no square")
    return Grid(side, side)


# ---------------------------------------------------------------------- FasterVLM


def fastervlm(case: Case) -> None:
    keep, method = case["visual_token_num"], FasterVLM()
    if case["kind"] == "video_frames":
        _fastervlm_video(case, keep, method)
        return
    attention = case.input("cls_attn").mean(1)
    if "attn_full" in case and not torch.allclose(case.input("attn_full")[:, :, 0, 1:].mean(1), attention, atol=1e-6):
        raise Failed("cls_attn is not the CLS row of attn_full")
    images, n = attention.shape
    views = [view(n, keep, {"attention": attention[i]}) for i in range(images)]
    kept = [method.select(image) for image in views]
    if "expected_packed_tile_row_col" in case:
        case.expect_setting("num_tiles", images)
        case.settings["grid_pinpoints_wh"] = [_fullest(case)]
        case.expect("expected_packed_tile_row_col", packed(case, kept, _grid(n).rows))
        return
    case.expect("expected_scores", torch.stack([method.score(image) for image in views]))
    case.expect("expected_as_produced", torch.stack([top_k(method.score(image), keep) for image in views]))
    case.expect("expected_sorted", torch.stack(kept))


def _fullest(case: Case) -> tuple[int, int]:
    """FasterVLM's own choice of a canvas: the one that the resized image fills to the largest part."""
    width, height = case["image_size_wh"]

    def filled(canvas: tuple[int, int]) -> float:
        scale = min(canvas[0] / width, canvas[1] / height)
        return int(width * scale) * int(height * scale) / (canvas[0] * canvas[1])

    return max(case["grid_pinpoints_wh"], key=filled)


def _fastervlm_video(case: Case, keep: int, method: FasterVLM) -> None:
    attention, features = case.input("cls_attn_frames").mean(2), case.input("features")
    frames, n = attention.shape[1:]
    case.expect_setting("frames", frames)
    kept = [[method.select(view(n, keep, {"attention": frame})) for frame in video] for video in attention]
    indices = torch.stack([torch.stack(video) for video in kept])
    case.expect("expected_sorted", indices)
    case.expect("expected_features", features.gather(2, indices[..., None].expand(-1, -1, -1, features.shape[-1])))


# ---------------------------------------------------------------------- VisPruner


def vispruner(case: Case) -> None:
    attention, features = case.input("cls_attn").mean(1), case.input("features")
    images, n = attention.shape
    keep = case["visual_token_num"]
    method, official = (VisPruner(important=case["important_ratio"], compat=compat) for compat in ("paper", "official"))
    important, diverse, kept = [], [], []
    for i in range(images):
        image = view(n, keep, {"attention": attention[i], "rows": TowerRows(features[i], None)})
        parts = method.parts(image)
        important.append(parts[0])
        # the authors' list of the rest stays whole where nothing of it is wanted
        diverse.append(parts[1] if len(parts[0]) < keep else top_k(attention[i], n)[keep:])
        kept.append(method.select(image))
        check_exact(kept[-1], keep, n)
        if "official_raises" in case.settings:
            _refused(case, official, image)
        elif not torch.equal(official.select(image), kept[-1]):
            raise Failed(f"image {i}: the default differs from compat='official'")
    if "official_raises" in case.settings:
        return
    if "expected_packed_tile_row_col" in case:
        case.expect_setting("num_tiles", images)
        case.expect("expected_packed_tile_row_col", packed(case, kept, _grid(n).rows))
        return
    case.expect("expected_important", torch.stack(important))
    case.expect("expected_diverse", torch.stack(diverse))
    produced = [torch.cat(pair)[:keep] for pair in zip(important, diverse, strict=True)]
    case.expect("expected_as_produced", torch.stack(produced))
    case.expect("expected_sorted", torch.stack(kept))


# ---------------------------------------------------------------------- PruMerge and PruMerge+


def prumerge(case: Case) -> None:
    q, k, hidden = (case.input(name) for name in ("q", "k", "hidden"))
    attention = attention_rows(q[:, None, :1], k[:, None], q.shape[-1] ** -0.5)[:, 0, 1:]
    images, n = attention.shape
    cls = {"prumerge": PruMerge, "prumerge+": PruMergePlus}[case["variant"]]
    signals = [
        {
            "attention": attention[i],
            "keys": TowerRows(k[i, 1:], k[i, :1]),
            "rows": TowerRows(hidden[i, 1:], hidden[i, :1]),
        }
        for i in range(images)
    ]
    for own in signals:  # within a budget, and adaptive, whatever the authors' code does
        _check_merged(cls().select(view(n, n // 9, own)), n, n // 9)
        _check_merged(cls(adaptive=True).select(view(n, n // 9, own)), n)
    official = cls(adaptive=case["adaptive"], compat="official")
    if "official_raises" in case.settings:
        if images == 1:  # a batch fails in the authors' code alone: here images come one by one
            _refused(case, official, view(n, 2 * int(n * case["reduction_ratio_arg"]) + 1, signals[0]))
        return
    outliers = official.outliers(attention.flatten())
    ratio = outliers / (images * n) if case["adaptive"] else case["reduction_ratio_arg"]
    top = int(n * ratio)
    case.expect_setting("n_topk", top)
    case.expect_setting("ratio_used", ratio)
    if case["adaptive"] and images > 1:
        official = cls(compat="official")  # the authors' count is of the batch
    plus = case["variant"] == "prumerge+"
    if plus:
        case.expect_setting("step", int(1 / ratio))
    views = [view(n, (2 * top if plus else top) + 1, own) for own in signals]
    kept = [official.kept(image) for image in views]
    merged = [official.select(image) for image in views]
    case.expect("expected_cls_attn", attention)
    case.expect("expected_as_produced", torch.stack(kept))
    case.expect("expected_complement", torch.stack([official.rest(tokens, n) for tokens in kept]))
    case.expect("expected_features", torch.stack([result.features for result in merged]))
    case.expect_setting("n_out", len(merged[0].features))
    for result, tokens in zip(merged, kept, strict=True):
        if not torch.equal(result.anchors[:-1], tokens):
            raise Failed("the tokens do not stand where the kept ones stood")


def _check_merged(merged: Merged, n: int, keep: int | None = None) -> None:
    anchors = merged.anchors.tolist()
    if keep is not None and len(anchors) != keep:
        raise Failed(f"{len(anchors)} tokens instead of {keep}")
    if len(set(anchors)) != len(anchors) or min(anchors) < 0 or max(anchors) >= n:
        raise Failed(f"anchors are not distinct indices below {n}")
    if not bool(merged.features.isfinite().all()):
        raise Failed("features are not finite")


# ---------------------------------------------------------------------- HiRED


def hired(case: Case) -> None:
    if case["kind"] == "vit_attn_hook":
        _clip_rows(case)
    elif case["kind"] == "llava15":
        _hired_one_piece(case)
    else:
        _hired_tiles(case)


def _clip_rows(case: Case) -> None:
    """Maps from queries and keys, and the library's statistic of their CLS rows."""
    query, key = (
        case.input(name).unflatten(-1, (case["num_heads"], -1)).transpose(1, 2) for name in ("q_proj_out", "k_proj_out")
    )
    scaling = query.shape[-1] ** -0.5
    maps = reference.attention(query, key, scaling)
    case.expect("expected_attn", maps)
    if not torch.allclose(attention_rows(query[:, :, :1], key, scaling), maps[:, :, :1].mean(1), atol=1e-6):
        raise Failed("attention_rows differs from the mean of the maps")


def _hired_one_piece(case: Case) -> None:
    late = case.input("bottom_cls_attn").mean(1)[0]  # the authors score the first image of a batch
    n = len(late)
    keep = min(n, int(n * case["token_budget_rate"]))
    kept = HiRED().select(view(n, keep, {"early": late, "late": late}, grid=_grid(n)))
    mask = torch.zeros(n, dtype=torch.bool).index_fill(0, kept, True)
    for name, chosen in (("expected_sorted", kept), ("expected_mask", mask)):
        case.expect(name, chosen.expand(case.arrays[name].shape))  # and take its choice for all


def _hired_tiles(case: Case) -> None:
    early, late = (case.input(name).mean(1) for name in ("top_cls_attn", "bottom_cls_attn"))
    n, rate, alpha = early.shape[1], case["token_budget_rate"], case["alpha"]
    masks, laid_out, first = [], [], 0
    for tiles, size in zip(case["num_tiles"], case["image_sizes_hw"], strict=True):
        signals = {"early": early[first : first + tiles], "late": late[first : first + tiles]}
        image = next_image(signals, _canvas_shape(case, size), n, min(tiles * n, int(tiles * n * rate)))
        masks.append(_tile_mask(HiRED(alpha=alpha, compat="official"), image))
        laid_out.append(_swapped_canvas(case, masks[-1], size))
        first += tiles
        default = HiRED(alpha=alpha).select(image)
        check_exact(default, image.keep, image.n)
    case.expect("expected_mask", torch.cat(masks))
    case.expect("expected_per_tile_count", torch.cat(masks).sum(1))
    case.expect("expected_packed_tile_row_col", torch.cat(laid_out))
    case.expect_setting("packed_len", [len(tokens) for tokens in laid_out])
    case.expect_setting("total_budget_last", image.keep)
    case.expect_setting("full_budget_last", int(masks[-1][0].sum()))
    case.expect_setting("sub_budget_last", min(image.keep - int(masks[-1][0].sum()), (tiles - 1) * n))


def _canvas_shape(case: Case, size: list[int]) -> tuple[int, int]:
    """Rows and columns of tiles."""
    height, width = select_best_resolution((size[0], size[1]), case["grid_pinpoints_hw"])
    return height // TILE, width // TILE


def _tile_mask(method: HiRED, image: ImageView) -> Tensor:
    assert image.grid is not None
    mask = torch.zeros(image.grid.size, dtype=torch.bool)
    mask[image.cells[method.select(image)]] = True
    return mask.view(image.grid.frames, -1)


def _swapped_canvas(case: Case, mask: Tensor, size: list[int]) -> Tensor:
    """[T, 3] tile, row, col in the order of the authors' packing, which takes rows of tiles for columns."""
    tiles, n = mask.shape
    side, (across, down) = _grid(n).rows, _canvas_shape(case, size)
    place = torch.arange(tiles * n)
    labels = torch.stack([place // n, place % n // side, place % side, mask.flatten()], dim=-1)
    canvas = labels[n:].view(down, across, side, side, 4).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    seen = torch.cat([labels[:n], unpad_image(canvas, size).flatten(1).T])
    return seen[seen[:, 3] == 1][:, :3]


RUNNERS: dict[str, Runner] = {
    "fastervlm": fastervlm,
    "vispruner": vispruner,
    "prumerge": prumerge,
    "hired": hired,
}
