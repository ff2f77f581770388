"""Images as methods see them, drawn at random and without a model."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from vlmprune.core.budget import Keep
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.signals import (
    DecoderKeys,
    DecoderStates,
    EncoderKeys,
    EncoderStates,
    Features,
    QuestionWords,
    TowerFeatures,
)
from vlmprune.core.view import Aligned, Grid, ImageView, Merged, ModelInfo, Tokens, TowerRows

LLAVA = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)
QWEN = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)
WIDTH = 12


def values(kind: str, *shape: int, seed: int = 0) -> Tensor:
    """Numbers as images make them, and as they make them where there is little to see."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, generator=generator)
    return {
        "noise": noise,
        "ties": noise.round(),
        "constant": torch.ones(shape),
        "zero": torch.zeros(shape),
        "half zero": noise
        * (torch.rand(shape[0], generator=generator) < 0.5).float().view(-1, *[1] * (len(shape) - 1)),
        "duplicates": noise[torch.randint(0, 1 + shape[0] // 4, (shape[0],), generator=generator)],
        "one line": noise[:, :1].expand(shape).clone() if len(shape) > 1 else noise,
        "huge": noise * 1e30,
        "tiny": noise * 1e-30,
    }[kind]


KINDS = ["noise", "ties", "constant", "zero", "half zero", "duplicates", "one line", "huge", "tiny"]


def image(
    asked: Method,
    n: int,
    keep: int,
    kind: str = "noise",
    info: ModelInfo = LLAVA,
    grid: Grid | None = None,
    slots: Tensor | None = None,
    texts: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ImageView:
    """A view with just the signals that the method declares."""
    signals: dict[str, Any] = {}
    for i, (name, need) in enumerate(asked.needs(info).items()):
        numbers = values(kind, n + texts + 1, WIDTH, seed=100 * seed + i)
        numbers = numbers.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
        if isinstance(need, Features):
            signals[name] = numbers[:n]
        elif isinstance(need, QuestionWords):
            signals[name] = numbers[n : n + texts]
        elif isinstance(need, TowerFeatures | EncoderKeys | EncoderStates):
            signals[name] = TowerRows(numbers[:n], numbers[n : n + 1] if info.has_cls else None)
        elif isinstance(need, DecoderKeys | DecoderStates):
            signals[name] = Tokens(numbers[:n], numbers[n : n + texts])
        else:
            signals[name] = numbers[:n, 0].abs()
    return ImageView(keep, torch.arange(n) if slots is None else slots, grid, info, signals, seed)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A grid (or none) of which some tokens may already be gone, and a budget below what is left."""
    grid = Grid(draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(1, 3)))
    size = max(2, grid.size)
    if size != grid.size:
        grid = Grid(1, 2)
    n = draw(st.integers(2, size))
    slots = torch.randperm(size, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))[:n].sort().values
    return {
        "n": n,
        "keep": draw(st.integers(1, n - 1)),
        "kind": draw(st.sampled_from(KINDS)),
        "info": draw(st.sampled_from([LLAVA, QWEN])),
        "grid": draw(st.sampled_from([grid, None])),
        "slots": slots,
        "texts": draw(st.integers(0, 6)),
        "seed": draw(st.integers(0, 9)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
    }


NEXT = ModelInfo("llava_next", encoder_layers=24, decoder_layers=32, has_cls=True)
INTERN = ModelInfo("internvl", encoder_layers=24, decoder_layers=28, has_cls=True)
SMOL = ModelInfo("smolvlm", encoder_layers=12, decoder_layers=24, has_cls=False)
INFOS = [LLAVA, QWEN, NEXT, INTERN, SMOL]


def canvas(
    side: int,
    down: int,
    across: int,
    rows: range,
    cols: range,
    keep: int,
    early: Tensor | None = None,
    late: Tensor | None = None,
) -> ImageView:
    """An image of LLaVA-NeXT, unpadded to these rows and columns of patches of its canvas; signals are by cell."""
    cells = list(range(side * side))
    slots = list(cells)
    for line, row in enumerate(rows):
        for place, col in enumerate(cols):
            tile = 1 + row // side * across + col // side
            cells.append((tile * side + row % side) * side + col % side)
            slots.append(side * side + line * (len(cols) + 1) + place)
    grid = Grid(side, side, 1 + down * across)
    by_token = {
        name: (values("noise", grid.size, seed=seed) if signal is None else signal)[cells]
        for seed, (name, signal) in enumerate((("early", early), ("late", late)))
    }
    return ImageView(keep, torch.tensor(slots), grid, NEXT, by_token, cells=torch.tensor(cells))


def shown(asked: Method, **case: Any) -> ImageView:
    """A view of `test_methods.image`, with the instruction where the method reads it."""
    view = image(asked, **case)
    if "aligned" in view.signals:
        numbers = values(case.get("kind", "noise"), view.n + 9, WIDTH, seed=7)
        numbers = numbers.to(case.get("dtype", torch.float32))
        aligned = Aligned(numbers[9:], numbers[: case.get("texts", 6)], clip=False)
        view.signals = {**view.signals, "aligned": aligned}
    return view


def of_tensors(keep: int, grid: Grid | None, info: ModelInfo = LLAVA, **signals: Any) -> ImageView:
    n = len(next(iter(signals.values())))
    return ImageView(keep, torch.arange(n), grid, info, signals)


def video(asked: Method, keep: Keep, grid: Grid, features: Tensor, info: ModelInfo = QWEN, **signals: Any) -> ImageView:
    """A whole video as a method sees it under a budget."""
    act = acts_of(asked, keep, info)[0].of(grid.size, grid, video=True)
    shown = {"features": features, **signals}
    return ImageView(act.budget(grid.size, grid.size), torch.arange(grid.size), grid, info, shown, act=act)


def anyres(asked: Method, keep: int, rows: int, cols: int, kind: str = "noise") -> ImageView:
    """LLaVA-NeXT's layout: a base tile of 4 x 4, then tiles of 4 x 4 row by row with a newline at each row's end."""
    canvas_row, canvas_col = torch.meshgrid(torch.arange(4 * rows), torch.arange(4 * cols), indexing="ij")
    tile = 1 + canvas_row // 4 * cols + canvas_col // 4
    cells = (tile * 4 + canvas_row % 4) * 4 + canvas_col % 4
    cells = torch.cat([torch.arange(16), nn.functional.pad(cells, (0, 1), value=-1).flatten()])
    grid = Grid(4, 4, 1 + rows * cols)
    view = shown(asked, n=len(cells), keep=keep, kind=kind, info=NEXT, grid=grid)
    view.cells = cells
    return view


def picked(asked: Method, view: ImageView) -> Tensor:
    chosen = asked.select(view)
    assert isinstance(chosen, Tensor)
    return chosen


def merged_by(asked: Method, view: ImageView) -> Merged:
    merged = asked.select(view)
    assert isinstance(merged, Merged)
    return merged


def check_picks(chosen: Tensor, keep: int, n: int) -> None:
    assert chosen.dtype == torch.long
    assert len(chosen) == keep
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert int(chosen[0]) >= 0 and int(chosen[-1]) < n


def check_merged(merged: Merged, view: ImageView) -> None:
    anchors = merged.anchors.tolist()
    assert merged.features.shape == (view.keep, WIDTH)
    assert len(anchors) == len(set(anchors)) == view.keep
    assert merged.features.isfinite().all()
    own = [anchor for anchor in anchors if anchor >= 0]
    assert max(own, default=0) < view.n
    if view.info.has_cls:
        assert anchors[0] == -1 and len(own) == view.keep - 1
    else:
        assert anchors == sorted(own)
