"""Generated documents: a light page of small text, each entry a letter and a number, in one or two columns."""

from __future__ import annotations

import numpy as np

from vlmprune.assets.ink import blend, glyph_alpha, to_image
from vlmprune.assets.world import DIGITS, LETTERS, Glyph, Scene, check_size, mark_glyphs

POINTS = 14  # size of small text
LETTER_WIDTH, DIGIT_WIDTH, HEIGHT = 12, 9, 13  # pixels of a small glyph's cell
_GAP = 3  # pixels between an entry's letter and its number
_ENTRY = LETTER_WIDTH + _GAP + 3 * DIGIT_WIDTH
_HEADING_SHARE, _RULED_SHARE = 0.5, 0.4  # of the pages
_HEADING = 12  # pixels
_COLUMN_GAP = 6  # pixels at least between two columns


def draw_page(rng: np.random.Generator, size: tuple[int, int] = (112, 112)) -> Scene:
    """Draw one page.

    Its letters are all different, and so are its numbers. An entry's regions follow one another: its letter, then its
    digits.

    Args:
        rng: the only source of randomness.
        size: (width, height) in pixels, at least 64 each.
    """
    check_size(size)
    width, height = size
    paper, ink = float(rng.uniform(205, 250)), np.full(3, rng.uniform(5, 70))
    pixels = np.full((height, width, 3), paper, np.float32) + rng.uniform(-6, 6, 3).astype(np.float32)
    left, top = (int(v) for v in rng.integers(3, 8, 2))
    if rng.random() < _HEADING_SHARE:
        bar = int(rng.uniform(0.3, 0.8) * width)
        pixels[top : top + 6, left : left + bar] = rng.uniform(70, 160)
        top += _HEADING
    pitch = HEIGHT + int(rng.integers(1, 5))
    rows = (height - 3 - top) // pitch
    columns = _columns(rng, width - left - 3)
    if rng.random() < _RULED_SHARE:
        for row in range(rows):
            pixels[top + row * pitch + HEIGHT, left : width - 3] -= 35
    corners = [(x, top + row * pitch) for x in (left + shift for shift in columns) for row in range(rows)]
    glyphs = []
    for (x, y), letter, number in zip(*_entries(rng, corners), strict=True):
        glyphs += write_entry(pixels, x, y, letter, number, ink)
    masks = np.zeros((height, width), np.uint8)
    regions = mark_glyphs(masks, glyphs)
    return Scene(to_image(pixels), (), None, None, "plain", masks, regions)


def _columns(rng: np.random.Generator, width: int) -> tuple[int, ...]:
    """The left edges of one or two columns within `width` pixels."""
    spare = width - 2 * _ENTRY
    if spare >= _COLUMN_GAP and rng.random() < 0.6:
        first = int(rng.integers(0, spare - _COLUMN_GAP + 1))
        return first, first + _ENTRY + int(rng.integers(_COLUMN_GAP, spare - first + 1))
    return (int(rng.integers(0, width - _ENTRY + 1)),)


def _entries(
    rng: np.random.Generator, corners: list[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[str], list[str]]:
    """Which corners are written on, in order, and the letter and the number of each."""
    most = min(len(corners), len(LETTERS))
    count = int(rng.integers(min(3, most), most + 1))
    chosen = [corners[k] for k in sorted(rng.permutation(len(corners))[:count].tolist())]
    letters = [LETTERS[k] for k in rng.permutation(len(LETTERS))[:count].tolist()]
    numbers: list[str] = []
    while len(numbers) < count:
        number = random_number(rng)
        if number not in numbers:
            numbers.append(number)
    return chosen, letters, numbers


def random_number(rng: np.random.Generator) -> str:
    """Two or three digits."""
    return "".join(DIGITS[k] for k in rng.integers(0, 10, int(rng.integers(2, 4))).tolist())


def write_entry(pixels: np.ndarray, x: int, y: int, letter: str, number: str, ink: np.ndarray) -> list[Glyph]:
    """Write a letter and a number from the corner (x, y) on."""
    start = x + LETTER_WIDTH + _GAP
    return [write_letter(pixels, x, y, letter, ink), *write_number(pixels, start, y, number, ink)]


def write_letter(pixels: np.ndarray, x: int, y: int, letter: str, ink: np.ndarray) -> Glyph:
    blend(pixels, x, y, glyph_alpha(letter.upper(), LETTER_WIDTH, HEIGHT, POINTS), ink)
    return Glyph("letter", letter, (x, y, x + LETTER_WIDTH, y + HEIGHT))


def write_number(pixels: np.ndarray, x: int, y: int, number: str, ink: np.ndarray) -> list[Glyph]:
    glyphs = []
    for k, digit in enumerate(number):
        left = x + k * DIGIT_WIDTH
        blend(pixels, left, y, glyph_alpha(digit, DIGIT_WIDTH, HEIGHT, POINTS), ink)
        glyphs.append(Glyph("digit", digit, (left, y, left + DIGIT_WIDTH, y + HEIGHT), k + 1))
    return glyphs
