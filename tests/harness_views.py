"""Images as methods see them, drawn at random and without a model."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from vlmprune.core.method import Method
from vlmprune.core.signals import DecoderKeys, DecoderStates, EncoderKeys, Features, TowerFeatures
from vlmprune.core.view import Grid, ImageView, ModelInfo, Tokens, TowerRows

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
        elif isinstance(need, TowerFeatures | EncoderKeys):
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
