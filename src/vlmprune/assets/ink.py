"""What scenes, pages, screens and clips are drawn with: shapes and glyphs with soft edges, and free places."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]  # (left, top, right, bottom) in pixels

SUPERSAMPLE = 8


class Places:
    """Free places in a picture; boxes already taken are never given again.

    Attributes:
        frame: the part of the picture that is filled.
        taken: boxes.
    """

    def __init__(self, rng: np.random.Generator, frame: Box) -> None:
        self.rng, self.frame = rng, frame
        self.taken: list[Box] = []

    def take(self, width: int, height: int, margin: int = 2) -> tuple[int, int] | None:
        """A free left-top corner for a box, or None when 40 draws found none."""
        x0, y0, x1, y1 = self.frame
        columns = self.rng.integers(x0, x1 - width + 1, 40).tolist()
        rows = self.rng.integers(y0, y1 - height + 1, 40).tolist()
        for x, y in zip(columns, rows, strict=True):
            right, bottom = x + width + margin, y + height + margin
            if all(
                right <= left or bottom <= top or x >= r + margin or y >= b + margin for left, top, r, b in self.taken
            ):
                self.taken.append((x, y, x + width, y + height))
                return x, y
        return None


def blend(pixels: np.ndarray, x: int, y: int, alpha: np.ndarray, color: np.ndarray) -> None:
    """Paint `color` on float32 [H, W, 3] pixels, from the corner (x, y), as far as `alpha` [h, w] covers."""
    height, width = alpha.shape
    patch = pixels[y : y + height, x : x + width]
    patch += alpha[:, :, None] * (color.astype(np.float32) - patch)


def to_image(pixels: np.ndarray) -> np.ndarray:
    """Float pixels as uint8."""
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def tinted(rng: np.random.Generator, color: tuple[int, int, int]) -> np.ndarray:
    """A colour, float32 [3], a little off in each channel."""
    return np.asarray(color, np.float32) + rng.uniform(-12, 12, 3).astype(np.float32)


@cache
def shape_alpha(shape: str, side: int) -> np.ndarray:
    """Antialiased coverage of a shape, float32 [side, side] in 0..1."""
    big = side * SUPERSAMPLE
    image = Image.new("L", (big, big))
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
        hole = round(big * 0.28)
        draw.ellipse((hole, hole, big - 1 - hole, big - 1 - hole), fill=0)
    elif shape == "square":
        inset = round(big * 0.06)
        draw.rectangle((inset, inset, big - 1 - inset, big - 1 - inset), fill=255)
    elif shape == "triangle":
        draw.polygon([(big / 2, 0), (big, big), (0, big)], fill=255)
    elif shape == "cross":
        low, high = big * 0.33, big * 0.67
        draw.rectangle((low, 0, high, big), fill=255)
        draw.rectangle((0, low, big, high), fill=255)
    else:
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, 0.53, 0.23) * big
        points = zip(big / 2 + radii * np.cos(angles), big * 0.53 + radii * np.sin(angles), strict=True)
        draw.polygon([(float(px), float(py)) for px, py in points], fill=255)
    small = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


@cache
def glyph_alpha(character: str, width: int, height: int, points: int = 17) -> np.ndarray:
    """Antialiased coverage of a centred character, float32 [height, width] in 0..1."""
    image = Image.new("L", (width, height))
    font = ImageFont.load_default(points)
    ImageDraw.Draw(image).text((width / 2, height / 2), character, fill=255, font=font, anchor="mm")
    return np.asarray(image, np.float32) / 255
