"""Grounds behind a scene: textures, photographs, clutter, and frames that end before the picture does."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TEXTURES = ("plain", "stripes", "dots", "checks", "waves", "noise", "photo")
PHOTO_FOLDER = Path(__file__).parent / "photos"
_OVERLAID = 0.3  # of the training grounds with a photograph show two
SMALLEST_FRAME = 72  # pixels


def frame(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """A random part of the picture, (left, top, right, bottom)."""
    wide = int(rng.integers(min(SMALLEST_FRAME, width), width + 1))
    high = int(rng.integers(min(SMALLEST_FRAME, height), height + 1))
    left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
    return left, top, left + wide, top + high


def margins(rng: np.random.Generator, ground: np.ndarray, frame: tuple[int, int, int, int]) -> np.ndarray:
    """The ground inside `frame`, one grey outside."""
    left, top, right, bottom = frame
    if (right - left, bottom - top) == (ground.shape[1], ground.shape[0]):
        return ground
    framed = np.full_like(ground, rng.uniform(0, 200))
    framed[top:bottom, left:right] = ground[top:bottom, left:right]
    return framed


def clutter(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """Muted strokes and patches on the ground: there to be looked at, but no question asks for them."""
    height, width, _ = ground.shape
    base = ground.mean(axis=(0, 1))
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(4, 20))):
        tone = np.clip(base + rng.uniform(-38, 38) + rng.uniform(-10, 10, 3), 0, 255).astype(int)
        color = (int(tone[0]), int(tone[1]), int(tone[2]))
        x, y = float(rng.uniform(-8, width)), float(rng.uniform(-8, height))
        w, h = (float(v) for v in rng.uniform(3, 26, 2))
        if rng.random() < 0.5:
            draw.line((x, y, x + w * float(rng.choice((-1, 1))), y + h), fill=color, width=int(rng.integers(1, 4)))
        else:
            start, end = sorted(float(v) for v in rng.uniform(0, 360, 2))
            draw.pieslice((x, y, x + w, y + h), start, end, fill=color)
    return np.asarray(picture, np.float32)


@cache
def _photographs(split: str) -> tuple[np.ndarray, ...]:
    """The photographs of a split, each float32 [h, w, 3], muted in colour and contrast as the textures are."""
    paths = sorted((PHOTO_FOLDER / split).glob("*.jpg"))
    if not paths:
        raise ValueError(f'No photographs named "{split}": use "train" or "held_out".')
    muted = []
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
        gray = pixels.mean(axis=2, keepdims=True)
        muted.append(90 + 0.6 * (gray + 0.35 * (pixels - gray) - 110))
    return tuple(muted)


def photo(rng: np.random.Generator, width: int, height: int, split: str) -> np.ndarray:
    """A random crop, mirrored half of the time, float32 [height, width, 3].

    Those of "train" are also turned, taken nearer, recoloured and laid over each other: there are ten of them, and a
    model that knew them by heart would not know another photograph for one.
    """
    if split != "train":
        return _crop(rng, _photographs(split), width, height).copy()
    ground = _varied(rng, width, height)
    if rng.random() < _OVERLAID:
        share = rng.uniform(0.3, 0.7)
        ground = share * ground + (1 - share) * _varied(rng, width, height)
    return ground


def _crop(rng: np.random.Generator, photographs: tuple[np.ndarray, ...], width: int, height: int) -> np.ndarray:
    source = photographs[int(rng.integers(len(photographs)))]
    top = int(rng.integers(source.shape[0] - height + 1))
    left = int(rng.integers(source.shape[1] - width + 1))
    crop = source[top : top + height, left : left + width]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _varied(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A crop of a training photograph, turned, enlarged up to twice, its channels and contrast changed."""
    near = rng.uniform(0.5, 1.0)
    turned = rng.random() < 0.5
    sides = [max(8, round(near * side)) for side in ((height, width) if turned else (width, height))]
    crop = _crop(rng, _photographs("train"), *sides)
    if turned:
        crop = crop.swapaxes(0, 1)
    enlarged = Image.fromarray(np.clip(crop, 0, 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(enlarged, np.float32)[..., rng.permutation(3)]
    mean = pixels.mean()
    varied: np.ndarray = mean + rng.uniform(-15, 15) + rng.uniform(0.6, 1.3) * (pixels - mean)
    return varied.astype(np.float32)


def texture(rng: np.random.Generator, width: int, height: int, name: str) -> np.ndarray:
    """A two-tone procedural texture in muted colours, float32 [height, width, 3]."""
    base = rng.uniform(45, 115) + rng.uniform(-14, 14, 3)
    other = base + rng.choice((-1, 1)) * rng.uniform(22, 34)
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    period = rng.uniform(7, 12)
    row_phase, column_phase = rng.uniform(0, period, 2)
    v, h = (rows + row_phase) / period, (columns + column_phase) / period
    if name == "plain":
        pattern = np.zeros((height, width), np.float32)
    elif name == "stripes":
        pattern = np.broadcast_to(((h if rng.random() < 0.5 else v) % 1 < 0.5), (height, width))
    elif name == "dots":
        pattern = ((v % 1 - 0.5) ** 2 + (h % 1 - 0.5) ** 2) < 0.06
    elif name == "checks":
        pattern = (v % 2 < 1) ^ (h % 2 < 1)
    elif name == "waves":
        pattern = (v + 0.45 * np.sin(2 * np.pi * h / 2)) % 1 < 0.5
    else:
        pattern = rng.random((height, width), dtype=np.float32)
    mixed = base + np.asarray(pattern, np.float32)[:, :, None] * (other - base)
    return mixed.astype(np.float32)
