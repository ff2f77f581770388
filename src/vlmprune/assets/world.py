"""Generated scenes: coloured shapes, a number plate and a letter on a texture or a photograph.

A scene is drawn from a `numpy.random.Generator`, at any image size, with every object at an arbitrary pixel, off
any patch lattice. It carries exact masks, so that a study can ask which visual tokens held the evidence.
Photographs come in two disjoint sets: `train` for training scenes, `held_out` for test scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
TEXTURES = ("plain", "stripes", "dots", "checks", "waves", "noise", "photo")
DIGITS = tuple("0123456789")
LETTERS = tuple("fhkmrstwxz")

PHOTO_FOLDER = Path(__file__).parent / "photos"
_GLYPH_STEP = 13  # pixels from one digit of a plate to the next
_GLYPH_HEIGHT = 20
_TILE = (20, 24)  # width and height of the tile under the letter
_SUPERSAMPLE = 8
_FAINT_SHARE, _FAINT = 0.25, 0.7  # of the objects; how much of its colour a faint one has
_CLUTTER_SHARE = 0.35  # of the scenes
_FRAME_SHARE = 0.2  # of the scenes, which end before the picture does
_SMALLEST_FRAME = 72  # pixels


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape. `box` is (left, top, right, bottom), `center` is (x, y), all in pixels."""

    shape: str
    color: str
    size: str
    box: tuple[int, int, int, int]
    center: tuple[float, float]


@dataclass(frozen=True)
class Region:
    """What the pixels equal to `id` in `Scene.masks` show.

    `kind` is "object", "digit" or "letter"; `name` is "red circle", "7" or "k". An object's id is its index + 1.
    """

    id: int
    kind: str
    name: str


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
    if min(size) < 64:
        raise ValueError(f"A scene needs at least 64 pixels per side, not {width}x{height}.")
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
        ground = _photo(rng, width, height, photos) if is_photo else _texture(rng, width, height, self.background)
        if rng.random() < _CLUTTER_SHARE:
            ground = _clutter(rng, ground)
        self.frame = _frame(rng, width, height) if rng.random() < _FRAME_SHARE else (0, 0, width, height)
        self.pixels = _margins(rng, np.clip(ground, 0, 255), self.frame)
        self.masks = np.zeros((height, width), np.uint8)
        self.taken: list[tuple[int, int, int, int]] = []
        self.objects: list[SceneObject] = []
        self.object_regions: list[Region] = []
        self.glyphs: list[tuple[str, str, tuple[int, int, int, int]]] = []
        self.plate: str | None = None
        self.letter: str | None = None

    def place(self, width: int, height: int, margin: int = 2) -> tuple[int, int] | None:
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
            corner = self.place(side, side)
            if corner is not None:
                self.add_object(shape, color, label, side, corner)

    def add_object(self, shape: str, color: str, label: str, side: int, corner: tuple[int, int]) -> None:
        x, y = corner
        alpha = _shape_alpha(shape, side)
        strength = _FAINT if self.rng.random() < _FAINT_SHARE else 1.0
        tint = np.asarray(COLORS[color], np.float32) + self.rng.uniform(-12, 12, 3).astype(np.float32)
        self._blend(x, y, strength * alpha, tint)
        identifier = len(self.objects) + 1
        self.masks[y : y + side, x : x + side][alpha > 0.5] = identifier
        self.objects.append(SceneObject(shape, color, label, (x, y, x + side, y + side), (x + side / 2, y + side / 2)))
        self.object_regions.append(Region(identifier, "object", f"{color} {shape}"))

    def add_plate(self) -> None:
        rng = self.rng
        digits = "".join(DIGITS[int(k)] for k in rng.integers(0, 10, int(rng.integers(2, 5))))
        width, height = _GLYPH_STEP * len(digits) + 4, _GLYPH_HEIGHT + 4
        corner = self.place(width, height)
        if corner is None:
            return
        x, y = corner
        self.pixels[y : y + height, x : x + width] = rng.uniform(205, 245)
        for k, digit in enumerate(digits):
            left = x + 2 + k * _GLYPH_STEP
            self._blend(left, y + 2, _glyph_alpha(digit, _GLYPH_STEP, _GLYPH_HEIGHT), np.full(3, 20.0))
            self.glyphs.append(("digit", digit, (left, y + 2, left + _GLYPH_STEP, y + 2 + _GLYPH_HEIGHT)))
        self.plate = self.plate or digits

    def add_letter(self) -> None:
        letter = LETTERS[int(self.rng.integers(len(LETTERS)))]
        width, height = _TILE
        corner = self.place(width, height)
        if corner is None:
            return
        x, y = corner
        self.pixels[y : y + height, x : x + width] = self.rng.uniform(5, 30)
        self._blend(x, y, _glyph_alpha(letter.upper(), width, height), np.full(3, 235.0))
        self.glyphs.append(("letter", letter, (x, y, x + width, y + height)))
        self.letter = self.letter or letter

    def scene(self) -> Scene:
        regions = list(self.object_regions)
        for kind, name, (left, top, right, bottom) in self.glyphs:
            identifier = len(regions) + 1
            self.masks[top:bottom, left:right] = identifier
            regions.append(Region(identifier, kind, name))
        image = np.clip(np.rint(self.pixels), 0, 255).astype(np.uint8)
        return Scene(image, tuple(self.objects), self.plate, self.letter, self.background, self.masks, tuple(regions))

    def _blend(self, x: int, y: int, alpha: np.ndarray, color: np.ndarray) -> None:
        height, width = alpha.shape
        patch = self.pixels[y : y + height, x : x + width]
        patch += alpha[:, :, None] * (color.astype(np.float32) - patch)


def _frame(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """A random part of the picture, (left, top, right, bottom)."""
    wide = int(rng.integers(min(_SMALLEST_FRAME, width), width + 1))
    high = int(rng.integers(min(_SMALLEST_FRAME, height), height + 1))
    left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
    return left, top, left + wide, top + high


def _margins(rng: np.random.Generator, ground: np.ndarray, frame: tuple[int, int, int, int]) -> np.ndarray:
    """The ground inside `frame`, one grey outside."""
    left, top, right, bottom = frame
    if (right - left, bottom - top) == (ground.shape[1], ground.shape[0]):
        return ground
    framed = np.full_like(ground, rng.uniform(0, 200))
    framed[top:bottom, left:right] = ground[top:bottom, left:right]
    return framed


def _clutter(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
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
            draw.pieslice((x, y, x + w, y + h), *sorted(float(v) for v in rng.uniform(0, 360, 2)), fill=color)
    return np.asarray(picture, np.float32)


@cache
def _shape_alpha(shape: str, side: int) -> np.ndarray:
    """Antialiased coverage of a shape, float32 [side, side] in 0..1."""
    big = side * _SUPERSAMPLE
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
def _glyph_alpha(character: str, width: int, height: int) -> np.ndarray:
    """Antialiased coverage of a centred character, float32 [height, width] in 0..1."""
    image = Image.new("L", (width, height))
    font = ImageFont.load_default(17)
    ImageDraw.Draw(image).text((width / 2, height / 2), character, fill=255, font=font, anchor="mm")
    return np.asarray(image, np.float32) / 255


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


def _photo(rng: np.random.Generator, width: int, height: int, split: str) -> np.ndarray:
    """A random crop, mirrored half of the time, float32 [height, width, 3]."""
    photographs = _photographs(split)
    source = photographs[int(rng.integers(len(photographs)))]
    top = int(rng.integers(source.shape[0] - height + 1))
    left = int(rng.integers(source.shape[1] - width + 1))
    crop = source[top : top + height, left : left + width]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return crop.copy()


def _texture(rng: np.random.Generator, width: int, height: int, name: str) -> np.ndarray:
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
