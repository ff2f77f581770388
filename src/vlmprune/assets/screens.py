"""Generated screenshots: a window with coloured buttons, a letter on each, and sometimes a field with a number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from vlmprune.assets.ink import SUPERSAMPLE, Box, blend, tinted, to_image
from vlmprune.assets.pages import DIGIT_WIDTH, HEIGHT, LETTER_WIDTH, random_number, write_letter, write_number
from vlmprune.assets.world import COLORS, LETTERS, Glyph, Scene, check_size, mark_glyphs

_MOST = 6  # buttons
_CELL = (28, 21)  # the least width and height of a button's cell
_LARGEST = (44, 26)  # a button's
_TITLE = 9  # pixels
_FIELD = HEIGHT + 4  # pixels
_FIELD_SHARE = 0.4  # of the screens that have the room


@dataclass(frozen=True)
class Button:
    """A button. `box` is (left, top, right, bottom) in pixels; `region` is the id of its letter in `Scene.masks`."""

    letter: str
    color: str
    box: Box
    region: int


@dataclass(frozen=True)
class Screen(Scene):
    """A drawn screenshot: a scene without objects, with `buttons` whose letters all differ."""

    buttons: tuple[Button, ...]


def draw_screen(rng: np.random.Generator, size: tuple[int, int] = (112, 112)) -> Screen:
    """Draw one screenshot.

    Args:
        rng: the only source of randomness.
        size: (width, height) in pixels, at least 64 each.
    """
    check_size(size)
    width, height = size
    pixels = np.full((height, width, 3), rng.uniform(30, 140), np.float32) + rng.uniform(-25, 25, 3).astype(np.float32)
    left, top = (int(v) for v in rng.integers(0, 4, 2))
    right, bottom = width - int(rng.integers(0, 4)), height - int(rng.integers(0, 4))
    _window(rng, pixels, (left, top, right, bottom))
    top += _TITLE
    glyphs: list[Glyph] = []
    if bottom - top >= _FIELD + 3 * _CELL[1] and rng.random() < _FIELD_SHARE:
        if rng.random() < 0.5:
            glyphs += _field(rng, pixels, left, right, top + 2)
            top += _FIELD + 2
        else:
            bottom -= _FIELD + 2
            glyphs += _field(rng, pixels, left, right, bottom)
    boxes = _button_boxes(rng, (left + 1, top + 1, right - 1, bottom - 1))
    letters = [LETTERS[k] for k in rng.permutation(len(LETTERS))[: len(boxes)].tolist()]
    buttons = []
    for box, letter in zip(boxes, letters, strict=True):
        color = list(COLORS)[int(rng.integers(len(COLORS)))]
        glyphs.append(_button(rng, pixels, box, color, letter))
        buttons.append(Button(letter, color, box, len(glyphs)))
    masks = np.zeros((height, width), np.uint8)
    regions = mark_glyphs(masks, glyphs)
    return Screen(to_image(pixels), (), None, None, "plain", masks, regions, tuple(buttons))


def _window(rng: np.random.Generator, pixels: np.ndarray, box: Box) -> None:
    """A panel, dark or light, with a title bar that holds a bar of text and the dots of its own buttons."""
    left, top, right, bottom = box
    panel = float(rng.uniform(35, 80) if rng.random() < 0.4 else rng.uniform(150, 205))
    pixels[top:bottom, left:right] = panel
    pixels[top : top + _TITLE, left:right] = rng.uniform(20, 120) + rng.uniform(-15, 15, 3)
    shade = rng.uniform(140, 230)
    pixels[top + 3 : top + 6, left + 4 : left + 4 + int(rng.uniform(0.2, 0.5) * (right - left))] = shade
    for k in range(int(rng.integers(1, 4))):
        x = right - 6 - 6 * k
        pixels[top + 3 : top + 6, x : x + 3] = shade


def _field(rng: np.random.Generator, pixels: np.ndarray, left: int, right: int, top: int) -> list[Glyph]:
    """A light field with a number in it."""
    number = random_number(rng)
    need = DIGIT_WIDTH * len(number) + 6
    wide = int(rng.integers(need, right - left - 7))
    x = left + 4 + int(rng.integers(0, right - left - 7 - wide))
    pixels[top : top + _FIELD, x : x + wide] = rng.uniform(220, 252)
    return write_number(pixels, x + 3, top + 2, number, np.full(3, 25.0))


def _button_boxes(rng: np.random.Generator, panel: Box) -> list[Box]:
    """Boxes of three to six buttons in a grid, each of its own size and a little off its place."""
    left, top, right, bottom = panel
    columns = int(rng.integers(2, max(2, min(3, (right - left) // _CELL[0])) + 1))
    rows = int(rng.integers(2, max(2, min(4, (bottom - top) // _CELL[1])) + 1))
    wide, high = (right - left) // columns, (bottom - top) // rows
    count = int(rng.integers(3, min(_MOST, rows * columns) + 1))
    boxes = []
    for cell in sorted(rng.permutation(rows * columns)[:count].tolist()):
        width = int(rng.integers(_CELL[0] - 6, min(_LARGEST[0], wide - 2) + 1))
        height = int(rng.integers(_CELL[1] - 4, min(_LARGEST[1], high - 2) + 1))
        x = left + cell % columns * wide + 1 + int(rng.integers(0, wide - 1 - width))
        y = top + cell // columns * high + 1 + int(rng.integers(0, high - 1 - height))
        boxes.append((x, y, x + width, y + height))
    return boxes


def _button(rng: np.random.Generator, pixels: np.ndarray, box: Box, color: str, letter: str) -> Glyph:
    left, top, right, bottom = box
    fill = tinted(rng, COLORS[color])
    blend(pixels, left, top, _rounded_alpha(right - left, bottom - top), fill)
    bright = float(fill @ np.asarray((0.299, 0.587, 0.114), np.float32)) > 125
    x, y = left + (right - left - LETTER_WIDTH) // 2, top + (bottom - top - HEIGHT) // 2
    return write_letter(pixels, x, y, letter, np.full(3, 15.0 if bright else 245.0))


@cache
def _rounded_alpha(width: int, height: int) -> np.ndarray:
    """Coverage of a rounded rectangle, float32 [height, width] in 0..1."""
    image = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE))
    corner = (image.width - 1, image.height - 1)
    ImageDraw.Draw(image).rounded_rectangle((0, 0, *corner), 5 * SUPERSAMPLE, fill=255)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float32) / 255
