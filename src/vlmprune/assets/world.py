"""Generated scenes: coloured shapes, a number plate and a letter on a texture or a photograph.

A scene is drawn from a `numpy.random.Generator`, at any image size, with every object at an arbitrary pixel, off
any patch lattice. It carries exact masks, so that a study can ask which visual tokens held the evidence.
Photographs come in two disjoint sets: `train` for training scenes, `held_out` for test scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmprune.assets.grounds import TEXTURES as TEXTURES
from vlmprune.assets.grounds import clutter, frame, margins, photo, texture
from vlmprune.assets.ink import Box, Places, blend, glyph_alpha, shape_alpha, tinted, to_image

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 90, 235),
    "yellow": (240, 222, 50),
    "orange": (245, 140, 25),
    "purple": (165, 60, 205),
    "cyan": (60, 215, 225),
    "white": (242, 242, 242),
}
SIZES: dict[str, tuple[int, ...]] = {
    "small": (15, 16, 17),
    "medium": (21, 22, 23),
    "large": (27, 28, 29),
    "huge": (35, 36, 37),
}
DIGITS = tuple("0123456789")
LETTERS = tuple("fhkmrstwxz")

SMALLEST_SIDE = 64  # pixels
_GLYPH_STEP = 13  # pixels from one digit of a plate to the next
_GLYPH_HEIGHT = 20
_TILE = (20, 24)  # width and height of the tile under the letter
_FAINT_SHARE, _FAINT = 0.25, 0.7  # of the objects; how much of its colour a faint one has
_CLUTTER_SHARE = 0.35  # of the scenes
_FRAME_SHARE = 0.2  # of the scenes, which end before the picture does


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape. `box` is (left, top, right, bottom), `center` is (x, y), all in pixels."""

    shape: str
    color: str
    size: str
    box: Box
    center: tuple[float, float]


@dataclass(frozen=True)
class Region:
    """What the pixels equal to `id` in `Scene.masks` show.

    `kind` is "object", "digit" or "letter"; `name` is "red circle", "7" or "k". An object's id is its index + 1.
    `place` counts a digit within its number, from 1; it is 0 for all else.
    """

    id: int
    kind: str
    name: str
    place: int = 0


@dataclass(frozen=True)
class Glyph:
    """A digit or a letter that was drawn; see `Region`."""

    kind: str
    name: str
    box: Box
    place: int = 0


def mark_glyphs(masks: np.ndarray, glyphs: Sequence[Glyph], used: int = 0) -> tuple[Region, ...]:
    """Mark each glyph's box in `masks` [H, W]; the regions, with ids after the `used` ones."""
    regions = []
    for identifier, glyph in enumerate(glyphs, start=used + 1):
        left, top, right, bottom = glyph.box
        masks[top:bottom, left:right] = identifier
        regions.append(Region(identifier, glyph.kind, glyph.name, glyph.place))
    return tuple(regions)


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        image: uint8 [H, W, 3].
        objects: the shapes, no two of the same colour and shape unless the scene is dense.
        plate: the digits on the number plate, or None.
        letter: the single letter, or None.
        background: one of `TEXTURES`.
        masks: uint8 [H, W], the id of the region at each pixel; 0 is background.
        regions: the table of ids.
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    plate: str | None
    letter: str | None
    background: str
    masks: np.ndarray
    regions: tuple[Region, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError where a picture would be too small to hold what is drawn in it."""
    if min(size) < SMALLEST_SIDE:
        raise ValueError(f"A picture needs at least {SMALLEST_SIDE} pixels per side, not {size[0]}x{size[1]}.")


def draw_scene(
    rng: np.random.Generator,
    size: tuple[int, int] = (112, 112),
    *,
    photos: str = "train",
    photo_share: float = 0.25,
    dense: bool = False,
) -> Scene:
    """Draw one scene.

    Args:
        rng: the only source of randomness.
        size: (width, height) in pixels, at least 64 each.
        photos: "train" or "held_out", the photographs that may be behind the scene.
        photo_share: the share of scenes with a photograph behind them.
        dense: many small objects, two plates and three letters, for warming up a vision tower.
    """
    width, height = size
    check_size(size)
    canvas = _Canvas(rng, width, height, photos, photo_share)
    plates = 2 if dense else int(rng.random() < 0.65)
    letters = 3 if dense else int(rng.random() < 0.5)
    count = int(rng.integers(4, 9)) if dense else int(rng.integers(1, 6))
    canvas.add_objects(count, repeats=dense)
    for _ in range(plates):
        canvas.add_plate()
    for _ in range(letters):
        canvas.add_letter()
    return canvas.scene()


class _Canvas:
    """A scene in the making; boxes already taken are never drawn over."""

    def __init__(self, rng: np.random.Generator, width: int, height: int, photos: str, photo_share: float) -> None:
        self.rng, self.width, self.height = rng, width, height
        is_photo = rng.random() < photo_share
        self.background = "photo" if is_photo else TEXTURES[int(rng.integers(len(TEXTURES) - 1))]
        ground = photo(rng, width, height, photos) if is_photo else texture(rng, width, height, self.background)
        if rng.random() < _CLUTTER_SHARE:
            ground = clutter(rng, ground)
        self.frame = frame(rng, width, height) if rng.random() < _FRAME_SHARE else (0, 0, width, height)
        self.pixels = margins(rng, np.clip(ground, 0, 255), self.frame)
        self.masks = np.zeros((height, width), np.uint8)
        self.places = Places(rng, self.frame)
        self.objects: list[SceneObject] = []
        self.object_regions: list[Region] = []
        self.glyphs: list[Glyph] = []
        self.plate: str | None = None
        self.letter: str | None = None

    def add_objects(self, count: int, repeats: bool) -> None:
        rng = self.rng
        shapes, colors, labels = list(SHAPES), list(COLORS), list(SIZES)
        kinds: list[tuple[str, str]] = []
        while len(kinds) < count:
            kind = (shapes[int(rng.integers(len(shapes)))], colors[int(rng.integers(len(colors)))])
            if repeats or kind not in kinds:
                kinds.append(kind)
        weights = (0.4, 0.3, 0.2, 0.1) if repeats else (0.25, 0.25, 0.25, 0.25)
        sizes = sorted((int(k) for k in rng.choice(4, count, p=weights)), reverse=True)
        for (shape, color), size_index in zip(kinds, sizes, strict=True):
            label = labels[size_index]
            side = int(rng.choice(SIZES[label]))
            corner = self.places.take(side, side)
            if corner is not None:
                self.add_object(shape, color, label, side, corner)

    def add_object(self, shape: str, color: str, label: str, side: int, corner: tuple[int, int]) -> None:
        x, y = corner
        alpha = shape_alpha(shape, side)
        strength = _FAINT if self.rng.random() < _FAINT_SHARE else 1.0
        tint = tinted(self.rng, COLORS[color])
        blend(self.pixels, x, y, strength * alpha, tint)
        identifier = len(self.objects) + 1
        self.masks[y : y + side, x : x + side][alpha > 0.5] = identifier
        self.objects.append(SceneObject(shape, color, label, (x, y, x + side, y + side), (x + side / 2, y + side / 2)))
        self.object_regions.append(Region(identifier, "object", f"{color} {shape}"))

    def add_plate(self) -> None:
        rng = self.rng
        digits = "".join(DIGITS[int(k)] for k in rng.integers(0, 10, int(rng.integers(2, 5))))
        width, height = _GLYPH_STEP * len(digits) + 4, _GLYPH_HEIGHT + 4
        corner = self.places.take(width, height)
        if corner is None:
            return
        x, y = corner
        self.pixels[y : y + height, x : x + width] = rng.uniform(205, 245)
        for k, digit in enumerate(digits):
            left = x + 2 + k * _GLYPH_STEP
            blend(self.pixels, left, y + 2, glyph_alpha(digit, _GLYPH_STEP, _GLYPH_HEIGHT), np.full(3, 20.0))
            box = (left, y + 2, left + _GLYPH_STEP, y + 2 + _GLYPH_HEIGHT)
            self.glyphs.append(Glyph("digit", digit, box, k + 1))
        self.plate = self.plate or digits

    def add_letter(self) -> None:
        letter = LETTERS[int(self.rng.integers(len(LETTERS)))]
        width, height = _TILE
        corner = self.places.take(width, height)
        if corner is None:
            return
        x, y = corner
        self.pixels[y : y + height, x : x + width] = self.rng.uniform(5, 30)
        blend(self.pixels, x, y, glyph_alpha(letter.upper(), width, height), np.full(3, 235.0))
        self.glyphs.append(Glyph("letter", letter, (x, y, x + width, y + height)))
        self.letter = self.letter or letter

    def scene(self) -> Scene:
        regions = (*self.object_regions, *mark_glyphs(self.masks, self.glyphs, len(self.object_regions)))
        image, objects = to_image(self.pixels), tuple(self.objects)
        return Scene(image, objects, self.plate, self.letter, self.background, self.masks, regions)
