"""Runners of the methods made for video."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from golden_runners.case import QWEN, Case, Failed, Runner, check_exact, sequence
from golden_runners.vision import HALF_PRECISION_SHARE
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.view import Grid, ImageView, Merged, ModelInfo
from vlmprune.methods.frames import frames_of
from vlmprune.methods.segments import Segment
from vlmprune.methods.vision.evs import EVS
from vlmprune.methods.vision.fastvid import FastVID
from vlmprune.methods.vision.vcast import VCast
from vlmprune.methods.vision.vidcom2 import VidCom2

QWEN3 = ModelInfo("qwen3_vl", encoder_layers=27, decoder_layers=36, has_cls=False)
HALF_PRECISION = 5e-3  # relative, of scores


def video(method: Method, keep: float | int, grid: Grid, **signals: Tensor) -> ImageView:
    """A whole video as a method sees it under a budget; its `keep` is n where the method leaves it as it is."""
    act = acts_of(method, keep, QWEN3)[0].of(grid.size, grid, video=True)
    budget = act.budget(grid.size, grid.size)
    return ImageView(budget, torch.arange(grid.size), grid, QWEN3, signals, act=act)


def kept_of(view: ImageView) -> Tensor:
    """The tokens that the method keeps, all where its budget is all of them."""
    method = view.act.method
    kept = method.select(view) if view.keep < view.n else torch.arange(view.n)
    assert isinstance(kept, Tensor)
    if method.exact:
        check_exact(kept, view.keep, view.n)
    return kept


def _expect_kept(case: Case, name: str, kept: Tensor) -> None:
    if case.get("dtype", "float32") == "float32":
        case.expect(name, kept)
    else:
        case.expect_nearly(name, kept, HALF_PRECISION_SHARE)


def _tolerance(case: Case, usual: float = 1e-5) -> float:
    return usual if case.get("dtype", "float32") == "float32" else HALF_PRECISION


def vidcom2(case: Case) -> None:
    features, share, dtype = case.input("features"), float(case["base_scale"]), case.get("dtype", "float32")
    grid = Grid(1, case["tokens_per_frame"], case["frames"])
    official = VidCom2(compat="official", score_dtype=dtype)
    view = video(official, share, grid, features=features)
    frames = frames_of(view)
    like_video, like_frame = official.likeness(features, frames)
    weights = official.weights(like_video, frames)
    shape = grid.frames, grid.cols
    case.expect("expected_video_score", like_video.view(shape), _tolerance(case))
    case.expect("expected_frame_score", like_frame.view(shape), _tolerance(case))
    case.expect("expected_scales", official.scales(weights, share), _tolerance(case))
    kept = official.select(view)
    _expect_kept(case, "kept_sorted", kept)
    case.expect("counts", torch.bincount(kept // grid.cols, minlength=grid.frames))
    if "kept_with_newlines" in case:
        case.expect("kept_with_newlines", _with_newlines(kept, grid))
    if "vllm_kept_sorted" in case:
        _vidcom2_vllm(case, features, dtype, grid)
    if share < 1:
        default = video(VidCom2(), share, grid, features=features)
        check_exact(kept_of(default), max(1, round(share * grid.size)), grid.size)


def _vidcom2_vllm(case: Case, features: Tensor, dtype: str, grid: Grid) -> None:
    if _grid(case["grid_thw"], case["merge"]).size != grid.size:
        raise Failed("grid_thw and the frames differ")
    share = 1 - case["q"]
    view = video(VidCom2(compat="vllm", score_dtype=dtype), share, grid, features=features)
    case.expect_setting("vllm_target", view.keep)
    before = VidCom2(compat="official", score_dtype=dtype).select(view)
    case.expect_setting("vllm_before_reconcile", len(before))
    _expect_kept(case, "vllm_kept_sorted", kept_of(view))


def _grid(thw: list[int], merge: int) -> Grid:
    frames, rows, cols = thw
    return Grid(max(1, rows // merge), max(1, cols // merge), frames)


def _with_newlines(kept: Tensor, grid: Grid) -> Tensor:
    """Rows of LLaVA-Video's grid with a newline at each row's end: of a frame the kept tokens, then all newlines."""
    side = round(grid.cols**0.5)
    found = []
    for frame in range(grid.frames):
        own = kept[kept // grid.cols == frame] % grid.cols
        first = frame * side * (side + 1)
        found += [first + own // side * (side + 1) + own % side, first + torch.arange(side) * (side + 1) + side]
    return torch.cat(found)


def vcast(case: Case) -> None:
    """Each video of a call by itself; a row of one frame is kept whole."""
    features, dtype = case.input("features"), case.get("dtype", "float32")
    official = VCast(compat="official", score_dtype=dtype, floor=case["min_k"], temperature=case["temperature"])
    grids = [_grid(thw, case["merge"]) for thw in case["grid_thw"]]
    kept, counts, curvatures, weights, budgets, first = [], [], [], [], [], 0
    for grid, own in zip(grids, features.split([grid.size for grid in grids]), strict=True):
        view = video(official, float(case["ratio"]), grid, features=own)
        chosen = kept_of(view)
        kept.append(chosen + first)
        first += grid.size
        if grid.frames == 1:
            continue
        frames = frames_of(view)
        budgets.append(view.keep)
        curvatures.append(official.curvature(official.centres(own, frames)))
        weights.append(official.weights(official.centres(own, frames)))
        counts.append(torch.bincount(chosen // (grid.rows * grid.cols), minlength=grid.frames))
        default = video(VCast(), float(case["ratio"]), grid, features=own)
        check_exact(kept_of(default), max(1, round(case["ratio"] * grid.size)), grid.size)
    _expect_kept(case, "kept_sorted", torch.cat(kept))
    case.expect_setting("total_budget", budgets)
    if counts:
        case.expect("counts", torch.cat(counts))
        case.expect("expected_curvature", torch.cat(curvatures), _tolerance(case, 1e-4))
        case.expect("expected_weights", torch.cat(weights), _tolerance(case, 1e-4))
    for level in (name for name in case.arrays if re.fullmatch(r"deepstack\d+", name)):
        case.expect(f"{level}_kept", case.input(level)[torch.cat(kept)])


def evs(case: Case) -> None:
    features, dtype = case.input("features"), case.get("dtype", "float32")
    grid = _grid(case["grid_thw"], case["merge"])
    view = video(EVS(score_dtype=dtype, compat="vllm"), 1 - case["q"], grid, features=features)
    case.expect_setting("keep_num", view.keep)
    kept = kept_of(view)
    _expect_kept(case, "kept_sorted", kept)
    if "expected_dissimilarity" in case:
        change = EVS(score_dtype=dtype).score(view)[grid.rows * grid.cols :]
        case.expect("expected_dissimilarity", change, _tolerance(case))
    if case.get("kind") == "positions":
        columns = sequence(kept, case["n_text_before"] + 1, grid.size, case["n_text_after"] + 1)
        case.input("vllm_positions")  # text behind a long video gets smaller positions than that: not repeated
        case.expect("sliced_positions", _positions(case, grid)[:, columns].int())
        if view.act.positions != "original":
            raise Failed("positions are not those of the whole prompt")


def _positions(case: Case, grid: Grid) -> Tensor:
    """M-RoPE positions [3, L] of the unpruned prompt: text, vision_start, video, vision_end, text.

    Text goes on behind the largest position of the video, as when the case was made; later versions of transformers
    count on from its rows and columns alone. The library slices whatever the model counts.
    """
    before, after = case["n_text_before"] + 1, case["n_text_after"] + 1
    seconds = case["tokens_per_second"] * case["second_per_grid"]
    axes = (torch.arange(grid.frames) * seconds).long(), torch.arange(grid.rows), torch.arange(grid.cols)
    video = before + torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")])
    text = torch.arange(before), torch.arange(after) + int(video.max()) + 1
    return torch.cat([text[0].expand(3, -1), video, text[1].expand(3, -1)], dim=1)


def fastvid(case: Case) -> None:
    family, grid = case["family"], Grid(case["h"], case["w"], case["frames"])
    compat = {"llava_onevision": "onevision", "llava_video": "paper", "qwen2_5_vl": "qwen"}[family]
    method = FastVID(
        segments=case["c"], tau=case["tau"], context=case["d"], stride=case["p"], beta=case["beta"], compat=compat
    )
    size, rows = grid.rows * grid.cols, case.input("video").flatten(0, 1)
    attention = case.input("frame_attn").flatten()
    frames = list(torch.arange(grid.size).split(size))
    keep = int(size * case["retention"]) * grid.frames
    plan = method.plan(case.input("frame_global"), [size] * grid.frames, keep, QWEN)
    case.expect("segment_sizes", torch.tensor([len(part.frames) for part in plan]))
    merged = method.merged(rows, attention, frames, plan, _noise(case, plan, grid))
    kept, features, n = merged.anchors, merged.features, grid.size
    if family == "llava_video":
        kept, features, n = _with_touched_newlines(case, kept, features, grid)
    case.expect_setting("kept", len(kept))
    case.expect("kept_all", sequence(kept, case["sys_len"], n, case["n_text"]))
    case.expect("expected_features", torch.cat([case.input("prefix"), features, case.input("suffix")]), 1e-4)
    default = replace(method, compat="paper")
    view = video(default, keep, grid, features=rows, attention=attention)
    if keep < grid.size:
        _check_merged(default.select(view), keep, grid.size)


def _noise(case: Case, plan: list[Segment], grid: Grid) -> dict[int, Tensor]:
    """The recorded noise by frame: of all frames, or of those with centres in order of time."""
    values, shapes = case.input("noise"), case["noise_shapes"]
    chunks = values.split([rows * cols for rows, cols in shapes])
    if len(shapes) == 1 and shapes[0][0] == grid.frames:
        return dict(enumerate(chunks[0].view(shapes[0])))
    marked = [t for part in plan for t, count in zip(part.frames, part.centres, strict=True) if count]
    return dict(zip(marked, chunks, strict=True))


def _with_touched_newlines(case: Case, kept: Tensor, features: Tensor, grid: Grid) -> tuple[Tensor, Tensor, int]:
    """Columns and rows with LLaVA-Video's newline at the end of each row in which a token stays."""
    row = kept // grid.cols
    touched = row.unique()
    columns = torch.cat([row * (grid.cols + 1) + kept % grid.cols, touched * (grid.cols + 1) + grid.cols])
    order = columns.argsort()
    newlines = case.input("newline").expand(len(touched), -1)
    return columns[order], torch.cat([features, newlines])[order], grid.frames * grid.rows * (grid.cols + 1)


def _check_merged(merged: Merged, keep: int, n: int) -> None:
    check_exact(merged.anchors, keep, n)
    if not bool(merged.features.isfinite().all()):
        raise Failed("new tokens are not finite")


RUNNERS: dict[str, Runner] = {
    "fastvid": fastvid,
    "vcast": vcast,
    "evs": evs,
    "vidcom2": vidcom2,
}
