"""Runners of methods that compare tokens with the question: TRIM and CDPruner."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from golden_runners.case import LLAVA, Case, Failed, Runner, check_exact, view
from golden_runners.vision import HALF_PRECISION_SHARE
from vlmprune.core.selectors import ascending
from vlmprune.core.view import Aligned, Grid, ImageView, ModelInfo, TowerRows
from vlmprune.methods.outliers import outliers_above
from vlmprune.methods.vision.cdpruner import CDPruner
from vlmprune.methods.vision.trim import Trim
from vlmprune.runtime.text_tower import TextTower

NEXT = ModelInfo("llava_next", encoder_layers=24, decoder_layers=32, has_cls=True)


# ---------------------------------------------------------------------- TRIM


def trim(case: Case) -> None:
    features, text, share = case.input("features"), case.input("text_embeds"), float(case["k"])
    images, n = features.shape[:2]
    tower = _tower(case)

    def views(keep: int) -> list[ImageView]:
        return [_asked(keep, tower, *pair) for pair in zip(features, text, strict=True)]

    scores = torch.stack([Trim().similarity(image) for image in views(1)]).softmax(1)
    if share == -1:  # outliers are counted over the batch
        share = outliers_above(scores.flatten()) / scores.numel()
    merged = [Trim().select(image) for image in views(int(n * share) + 1)]
    case.expect("softmax_scores", scores)
    case.expect_setting("batch", images)
    case.expect_setting("keep_num", len(merged[0].features) - 1)
    case.expect_setting("out_tokens", len(merged[0].features))
    case.expect("kept_sorted", torch.stack([result.anchors[:-1] for result in merged]))
    case.expect("out", torch.stack([result.features for result in merged]).half().float())
    if case["k"] == -1 and images == 1:
        adaptive = Trim(adaptive=True, compat="official").select(views(1)[0])
        if not torch.equal(adaptive.anchors, merged[0].anchors):
            raise Failed("adaptive keeps other tokens")


def _tower(case: Case) -> TextTower:
    """CLIP with the case's last LayerNorm and visual projection."""
    weights = [case.input(name) for name in ("ln_weight", "ln_bias", "proj_weight")]
    small = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    width = {"hidden_size": len(weights[0]), "layer_norm_eps": case["ln_eps"]}
    clip = CLIPModel(
        CLIPConfig(
            text_config={**small, "hidden_size": 8, "vocab_size": 9, "bos_token_id": 7, "eos_token_id": 8},
            vision_config={**small, **width},
            projection_dim=len(weights[2]),
        )
    )
    norm, projection = clip.vision_model.post_layernorm, clip.visual_projection
    with torch.no_grad():
        for parameter, values in zip((norm.weight, norm.bias, projection.weight), weights, strict=True):
            parameter.copy_(values)
    return TextTower(clip, None, None)


def _asked(keep: int, tower: TextTower, rows: Tensor, text: Tensor) -> ImageView:
    signals = {"rows": TowerRows(rows, None), "aligned": Aligned(tower.visual(rows), text[None], clip=True)}
    return view(len(rows), keep, signals)


# ---------------------------------------------------------------------- CDPruner


def cdpruner(case: Case) -> None:
    features, embeds, text = (case.input(name) for name in ("features", "image_embeds", "text_embeds"))
    tiles, n = features.shape[:2]
    keep, dtype = case["keep_num"], case.get("dtype", "float32")
    method = CDPruner(score_dtype=dtype)
    signals = {"features": features.flatten(0, 1), "aligned": Aligned(embeds.flatten(0, 1), text, clip=True)}
    image = view(tiles * n, tiles * keep, signals, NEXT if tiles > 1 else LLAVA, Grid(1, n, tiles))
    first = n * torch.arange(tiles)[:, None]
    own = torch.stack(method.picks(image)) - first
    kept = ascending(own)
    chosen = method.select(image)
    check_exact(chosen, tiles * keep, tiles * n)
    if not torch.equal(chosen, (kept + first).flatten()):
        raise Failed("select differs from the picks")
    if case.get("exact") is False:
        _compare_start(case, own)
        return
    case.expect_setting("kept_per_image", [keep] * tiles)
    for name, indices in (("kept_order", own), ("kept_sorted", kept)):
        if dtype == "float32":
            case.expect(name, indices)
        else:
            case.arrays[name] = (case.arrays[name] + first.numpy()).flatten()
            case.expect_nearly(name, (indices + first).flatten(), HALF_PRECISION_SHARE)
    _check_mask(case, torch.from_numpy(case.arrays["kept_sorted"]).view(tiles, -1) % n)


def _compare_start(case: Case, picks: Tensor) -> None:
    """Beyond the kernel's rank the authors' picks are rounding: they must only agree with what else the case says."""
    order, kept = case.input("kept_order"), case.input("kept_sorted")
    exact = case["prefix_exact"]
    case.expect("kept_order", torch.cat([picks[:, :exact], order[:, exact:]], dim=1))
    if not torch.equal(ascending(order), kept):
        raise Failed("kept_order and kept_sorted are not the same tokens")
    case.expect("kept_sorted", kept)
    _check_mask(case, kept)
    case.expect_setting("kept_per_image", case.input("mask").sum(1).tolist())


def _check_mask(case: Case, kept: Tensor) -> None:
    mask = case.input("mask")
    if not torch.equal(torch.zeros_like(mask).scatter(1, kept, True), mask):
        raise Failed("mask and kept_sorted are not the same tokens")


RUNNERS: dict[str, Runner] = {"trim": trim, "cdpruner": cdpruner}
