"""Runner of Nuwa: on towers, on canvases of tiles, by its core alone, and its second stage, which is FastV's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from golden_runners.anyres import TILE, next_image
from golden_runners.case import LLAVA, QWEN, Case, Failed, Skipped, sequence, view
from vlmprune.core.view import Grid, Merged, TowerRows
from vlmprune.methods.decoder.fastv import FastV
from vlmprune.methods.vision.nuwa import Nuwa

TOLERANCE = 1e-4
# Of LLaVA-1.5, by the budget that two stages meet on average; so many to each cell of 144.
ANCHORS, QUOTA = {64: 112, 128: 224, 192: 336}, {64: 1, 128: 2, 192: 3}
NEXT_QUOTA = {160: 2, 320: 3, 640: 3}
QWEN_QUOTA, QWEN_ANCHORS = {0.25: 3, 0.5: 3, 0.75: 4}, {0.25: 0.35, 0.5: 0.6, 0.75: 0.85}


def nuwa(case: Case) -> None:
    kinds: dict[str, Callable[[Case], None]] = {
        "tower": _tower, "anyres": _anyres, "core": _core, "qwen": _qwen, "stage2": _second_stage,
    }  # fmt: skip
    if case["kind"] not in kinds:
        raise Failed(f"unknown kind {case['kind']!r}")
    kinds[case["kind"]](case)


def _signals(rows: Tensor, attention: Tensor, states: Tensor) -> dict[str, Any]:
    return {"rows": TowerRows(rows, None), "attention": attention, "states": states}


def _of_tower(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [B, n, C], attention [B, n] and mean states [B, n, C] of patches."""
    hidden = case.input("hidden_16_24")[:, :, 1:]
    return hidden[case["select_layer"] - 16], case.input("cls_attn").mean(1)[:, 1:], hidden.mean(0)


def _method(case: Case, **options: Any) -> Nuwa:
    radius = {"radius": case["distance"] ** 0.5} if "distance" in case.settings else {}
    return Nuwa(percentile=case["percentile"], **radius, **options)


def _tower(case: Case) -> None:
    rows, attention, states = _of_tower(case)
    images, n = attention.shape
    side, final = math.isqrt(n), case["final_budget"]
    keep, method = -(-ANCHORS[final] // images), _method(case, quota=QUOTA[final])
    made = [
        method.select(view(n, keep, _signals(*one), LLAVA, Grid(side, side)))
        for one in zip(rows, attention, states, strict=True)
    ]
    _expect(case, torch.stack([one.anchors for one in made]), torch.stack([one.features for one in made]))


def _expect(case: Case, anchors: Tensor, features: Tensor) -> None:
    case.expect("kept_sorted", anchors)
    case.expect("expected_features", features, TOLERANCE)


def _anyres(case: Case) -> None:
    if "strict" in case.settings:
        raise Skipped("theirs swaps rows and columns of tiles, so that a wide image is stitched and cropped wrongly")
    rows, attention, states = _of_tower(case)
    n = attention.shape[1]
    side, (height, width) = math.isqrt(n), case["unpad_hw"]
    shape = case["image_size_wh"][1] // TILE, case["image_size_wh"][0] // TILE
    if (shape[0] * side, shape[1] * side) != (height, width):
        raise Failed("a canvas with padding is not laid out here")
    keep = len(case.arrays["kept_concat"])
    signals = {"rows": TowerRows(rows, rows[:, 0]), "attention": attention, "states": states}
    image = next_image(signals, shape, n, keep)
    merged = _method(case, quota=NEXT_QUOTA[case["final_budget"]]).select(image)
    slots, base = image.slots[merged.anchors], int((merged.anchors < n).sum())
    case.expect_setting("n_global", base)
    line, place = (slots[base:] - n) // (width + 1), (slots[base:] - n) % (width + 1)
    case.expect("kept_concat", torch.cat([slots[:base], n + line * width + place]))
    case.expect("expected_features", merged.features, TOLERANCE)
    _with_newlines(case, merged, slots, n)


def _with_newlines(case: Case, merged: Merged, slots: Tensor, n: int) -> None:
    """The authors keep each row's newline beside their budget; a token's position is that of its slot."""
    height, width = case["unpad_hw"]
    newlines = n + torch.arange(1, height + 1) * (width + 1) - 1
    places = torch.cat([slots, newlines])
    features = torch.cat([merged.features, case.input("newline").expand(height, -1)])
    order = places.argsort()
    case.expect("expected_llm_features", features[order], TOLERANCE)
    case.expect("expected_position_index", places[order])
    case.expect_setting("position_offset", n + height * (width + 1))


def _core(case: Case) -> None:
    rows, attention, states = case.input("agg"), case.input("metric"), case.input("sim")
    grid, n = Grid(case["h"], case["w"]), attention.shape[1]
    compat = "paper" if case["kept"] == case["budget"] else "official"
    method = _method(case, quota=case["top_n_per_region"], compat=compat)
    signals = [_signals(*one) for one in zip(rows, attention, states, strict=True)]
    made = [method.select(view(n, case["budget"], one, LLAVA, grid)) for one in signals]
    _expect(case, torch.stack([one.anchors for one in made]), torch.stack([one.features for one in made]))


def _qwen(case: Case) -> None:
    rows, attention, states = case.input("agg"), case.input("metric"), case.input("sim")
    grid, n, share = Grid(case["h"], case["w"]), len(attention), case["keep_ratio"]
    case.expect_setting("budget", math.ceil(n * QWEN_ANCHORS[share]))
    compat = "paper" if case["kept"] == case["budget"] else "official"
    method = _method(case, quota=QWEN_QUOTA[share], compat=compat)
    merged = method.select(view(n, case["budget"], _signals(rows, attention, states), QWEN, grid))
    case.expect_setting("kept", len(merged.anchors))
    _expect(case, merged.anchors, merged.features)


def _second_stage(case: Case) -> None:
    before, n, after = case["sys_len"], case["n_img"], case["n_text"]
    row = case.input("attn_last_row").mean(0)[before : before + n]
    kept = FastV(layer=case["layer"]).select(view(n, case["keep"], {"attention": row}))
    columns = sequence(kept, before, n, after)
    case.expect("kept_local", kept)
    case.expect("kept_all", columns)
    # positions as if nothing had been dropped before either
    image, offset = case.input("stage1_index"), case["position_offset"]
    ids = torch.cat([torch.arange(before), before + image, before + offset + torch.arange(after)])
    case.expect("position_ids_full", ids)
    if {Nuwa().positions(info) for info in (LLAVA, QWEN)} != {"original"} or FastV().positions(LLAVA) != "original":
        raise Failed("positions are re-numbered")
    case.expect("position_ids_kept", ids[columns])
