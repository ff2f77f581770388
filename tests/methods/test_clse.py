"""CLSE, and the spectrum of a picture's tokens."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import RAGGED, TOLERANCE, inputs_of, largest, oracle, policies
from harness_staged import HYBRID, LLAVA, QWEN2, counts_of, layers_of, run_on
from torch import Tensor

import vlmprune
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import LastQueryAttention
from vlmprune.core.view import Grid, ImageView, ModelInfo
from vlmprune.methods.decoder.clse import CLSE
from vlmprune.methods.spectrum import high_pass, raster
from vlmprune.runtime.select import choose

QWEN3 = ModelInfo("qwen3_vl", 24, 36, has_cls=False)
VIDEO = ModelInfo("video_llava", 24, 32, has_cls=True)


def shown(grid: Grid | None, n: int, keep: int, seed: int = 0, method: CLSE | None = None, **more: Any) -> ImageView:
    made = torch.Generator().manual_seed(seed)
    before, after = torch.randn(2, n, 6, generator=made)
    signals = {"attention": torch.rand(n, generator=made), "before": before, "after": after}
    act = acts_of(method or CLSE(), 0.5, LLAVA)[0]
    return ImageView(keep, torch.arange(n), grid, LLAVA, signals, act=act, **more)


def by_loops(values: list[list[float]], width: float) -> list[float]:
    """One channel of a grid, by the definition of the transform."""
    h, w = len(values), len(values[0])
    places = [(row, col) for row in range(h) for col in range(w)]

    def wave(sign: int, a: tuple[int, int], b: tuple[int, int]) -> complex:
        return cmath.exp(sign * 2j * math.pi * (a[0] * b[0] / h + a[1] * b[1] / w))

    def offset(frequency: int, side: int) -> int:
        return (frequency + side // 2) % side - side // 2

    spectrum = {f: sum(values[p[0]][p[1]] * wave(-1, f, p) for p in places) for f in places}
    for y, x in places:
        spectrum[y, x] *= 1 - math.exp(-(offset(y, h) ** 2 + offset(x, w) ** 2) / (2 * width**2))
    return [abs(sum(spectrum[f] * wave(1, f, p) for f in places)) / (h * w) for p in places]


@pytest.mark.parametrize(("h", "w", "cutoff"), [(4, 6, 0.5), (3, 5, 1.0), (1, 4, 0.1), (2, 2, 0.0)])
def test_the_spectrum_by_its_definition(h: int, w: int, cutoff: float) -> None:
    features = torch.randn(h * w, 3, generator=torch.Generator().manual_seed(1))
    width = max(cutoff * min(h // 2, w // 2), 1e-6)
    channels = [by_loops(features[:, c].reshape(h, w).tolist(), width) for c in range(3)]
    expected = [sum(values) / 3 for values in zip(*channels, strict=True)]
    got = high_pass(features, Grid(h, w), torch.arange(h * w), cutoff, "2d")
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_flat_picture_has_no_fine_structure_and_an_edge_has() -> None:
    picture = torch.zeros(6, 6, 2)
    assert high_pass(picture.flatten(0, 1) + 3, Grid(6, 6), torch.arange(36), 0.1, "2d").abs().max() < 1e-5
    picture[2, 3] = 1
    assert int(high_pass(picture.flatten(0, 1), Grid(6, 6), torch.arange(36), 0.1, "2d").argmax()) == 15


def test_frames_are_transformed_apart_or_together() -> None:
    frames = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(2))
    whole = high_pass(frames.flatten(0, 1), Grid(3, 4, 3), torch.arange(36), 0.5, "2d")
    single = [high_pass(frame, Grid(3, 4), torch.arange(12), 0.5, "2d") for frame in frames]
    assert torch.allclose(whole, torch.cat(single), atol=1e-6)
    together = high_pass(frames.flatten(0, 1), Grid(3, 4, 3), torch.arange(36), 0.5, "3d")
    assert not torch.allclose(whole, together, atol=1e-2)
    other = torch.fft.fftn(frames.reshape(3, 3, 4, 4), dim=(0, 1, 2))  # the cutoff leaves all but the mean, by nearly 1
    other[0, 0, 0] = 0
    assert torch.allclose(
        high_pass(frames.flatten(0, 1), Grid(3, 4, 3), torch.arange(36), 0.01, "3d"),
        torch.fft.ifftn(other, dim=(0, 1, 2)).abs().mean(-1).flatten(), atol=1e-5,
    )  # fmt: skip


def test_the_first_cut_looks_where_the_layer_changed_the_picture() -> None:
    view = shown(Grid(4, 4), 16, 1)
    after = view["before"].clone()
    after[9] += 3
    view.signals = {**view.signals, "after": after, "attention": torch.linspace(1, 0.9, 16)}
    assert CLSE().select(view).tolist() == [9]
    later = replace(view, act=acts_of(CLSE(), 0.5, LLAVA)[1])
    assert CLSE().select(later).tolist() == [0]
    same = {**view.signals, "after": view["before"]}  # no change anywhere: attention alone
    assert torch.allclose(CLSE().gate(replace(view, signals=same)), torch.tensor(0.5))


def test_without_a_whole_grid_attention_decides() -> None:
    for view in (shown(None, 16, 4), shown(Grid(4, 5), 16, 4)):
        assert raster(view) is None and torch.equal(CLSE().score(view), view["attention"])
    pruned = shown(Grid(4, 4), 12, 4)
    pruned.cells = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12])
    assert raster(pruned) is None
    merged = shown(Grid(4, 4), 16, 4, cells=torch.full((16,), -1))
    assert torch.equal(CLSE().score(merged), merged["attention"])


def test_slots_without_a_patch_compete_by_half_their_attention() -> None:
    """LLaVA-OneVision's newline behind a video of two frames."""
    cells = torch.tensor([*range(18), -1])
    view = shown(Grid(3, 3, 2), 19, 5, cells=cells)
    gate, inside = CLSE().gate(view), shown(Grid(3, 3, 2), 19, 5).signals
    assert float(gate[18]) == 0.5
    alone = ImageView(5, torch.arange(18), Grid(3, 3, 2), LLAVA, {k: v[:18] for k, v in inside.items()}, act=view.act)
    assert torch.allclose(gate[:18], CLSE().gate(alone))


def test_frame_by_frame_and_in_any_order_of_cells() -> None:
    view = shown(Grid(3, 3, 2), 18, 6, method=CLSE(per="frame"))
    chosen = choose(replace(view, act=acts_of(CLSE(per="frame"), 0.5, LLAVA)[0]))
    assert isinstance(chosen, Tensor) and (int((chosen < 9).sum()), len(chosen)) == (3, 6)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(3))  # tiles need not come in raster order
    mixed = view.part(order, 6, {name: value[order] for name, value in view.signals.items()})
    assert torch.allclose(CLSE().gate(mixed), CLSE().gate(view)[order], atol=1e-6)


@pytest.mark.parametrize("keep", [1, 2, 15])
@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(1, 16), Grid(16, 1), Grid(2, 2, 4)], ids=str)
def test_any_grid_gives_finite_scores_and_the_budget(grid: Grid, keep: int) -> None:
    view = shown(grid, 16, keep)
    for method in (CLSE(), CLSE(cutoff=0.0), CLSE(fft="3d")):
        assert bool(method.score(view).isfinite().all()) and len(method.select(view)) == keep
    alike = {name: torch.ones_like(value) for name, value in view.signals.items()}
    assert CLSE().select(replace(view, signals=alike)).tolist() == list(range(keep))


def test_layers_and_counts_are_the_authors() -> None:
    assert [layers_of(CLSE(), info) for info in (LLAVA, QWEN2, QWEN3)] == [[1, 11, 21], [1, 10, 19], [1, 13, 24]]
    assert layers_of(CLSE(), ModelInfo("llava", 24, 40, True)) == [1, 14, 27] and layers_of(CLSE(), VIDEO) == [3]
    assert layers_of(CLSE(), HYBRID) == [4, 12, 20]
    for keep, counts in ((192, [330, 210, 62]), (128, [220, 140, 41]), (64, [110, 70, 20]), (100, [172, 109, 32])):
        assert counts_of(CLSE(), keep, 576) == counts
    assert counts_of(CLSE(), 0.111, 576) == [110, 70, 20]
    assert counts_of(CLSE(), 0.334, 1000, QWEN3) == [570, 360, 98] and counts_of(CLSE(), 0.5, 64, QWEN3) == [55, 34, 10]
    assert counts_of(CLSE(), 0.112, 15, QWEN3) == [2, 1, 1] and counts_of(CLSE(), 0.6, 100) == [100, 65, 19]
    assert counts_of(CLSE(), 64, 512, VIDEO) == [64] and counts_of(CLSE(layers=(2,)), 0.25, 576) == [144]
    for keep, total in ((1.0, 576), (64, 60)):
        assert counts_of(CLSE(), keep, total) == [total] * 3
    assert counts_of(CLSE(), 1, 3) == [1, 1, 1]


def test_later_acts_read_attention_only() -> None:
    acts = acts_of(CLSE(), 0.5, LLAVA)
    assert set(acts[0].needs) == {"attention", "before", "after"}
    assert [act.needs for act in acts[1:]] == [{"attention": LastQueryAttention()}] * 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: CLSE(temp=0), "temp=0 must be a number above 0"),
        (lambda: CLSE(cutoff=-1.0), "cutoff=-1.0 must be a number from 0"),
        (lambda: CLSE(fft="4d"), "fft='4d' must be '2d' or '3d'"),
        (lambda: CLSE(layers=(1, 2, 3, 4)).acts(LLAVA, 0.5), "no schedule for as many as 4"),
        (lambda: CLSE().acts(ModelInfo("llava", 24, 1, True), 0.5), "no decoder layer whose attention"),
    ],
)
def test_wrong_options_are_one_sentence(wrong: Any, says: str) -> None:
    with pytest.raises(vlmprune.UserError, match=says):
        wrong()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_every_cache_holds_what_the_last_cut_left_and_it_matters(family: str) -> None:
    torch.set_num_threads(1)
    recipe, inputs = Recipe((Stage(CLSE(), 0.3),)), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    last = report.stages[-1][0]
    assert report.trimmed == dict.fromkeys(range(last), last)
    assert largest(logits, oracle(family, RAGGED, inputs, tokens, report, policies(recipe, family))) < TOLERANCE
    _, whole, kept = run_on(family, Recipe((Stage(CLSE(kv_prune=False), 0.3),)), inputs)
    assert kept.trimmed == {} and largest(whole[:, 1:], logits[:, 1:]) > 50 * TOLERANCE
