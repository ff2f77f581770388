"""Generated clips: a few frames in which objects move, appear or change their colour, and a number is shown for a time.

The ground stands still. No two objects of a clip have the same shape, so that a shape names one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlmprune.assets.grounds import TEXTURES, texture
from vlmprune.assets.ink import Box, Places, blend, glyph_alpha, shape_alpha, tinted, to_image
from vlmprune.assets.pages import random_number
from vlmprune.assets.world import COLORS, SHAPES, SIZES, Glyph, Region, check_size, mark_glyphs

FPS = 2.0  # frames a second that a clip is said to have
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ROLES = ("still", "moves", "becomes", "appears")
_ROLE_WEIGHTS = (0.15, 0.25, 0.2, 0.4)
_LEAST_MOVE = 1 / 3  # of the picture's side
_FLASH_SHARE = 0.45  # of the clips
_GLYPH = (13, 20)  # width and height of a digit on the plate


@dataclass(frozen=True)
class ClipObject:
    """One shape through a clip of T frames.

    Attributes:
        shape, size: as in a scene.
        role: what it does, one of `ROLES`.
        colors: its colour in each frame, T names.
        boxes: its place in each frame, T of (left, top, right, bottom) in pixels; None where it is not there.
        direction: where it moves, a key of `DIRECTIONS`; empty for all others.
        frame: the first frame of the change: moved, in the new colour, there. 0 where nothing changes.
    """

    shape: str
    size: str
    role: str
    colors: tuple[str, ...]
    boxes: tuple[Box | None, ...]
    direction: str = ""
    frame: int = 0


@dataclass(frozen=True)
class Clip:
    """A drawn clip of T frames.

    Attributes:
        frames: uint8 [T, H, W, 3].
        fps: frames a second.
        objects: one to three, in no order.
        number: the digits on a plate that is shown for a part of the time, or None.
        number_frames: the first frame that shows the plate and the first one after it.
        background: the texture behind.
        masks: uint8 [T, H, W], the id of the region at each pixel; an object's id is its index + 1.
        regions: the table of ids; an object has the name of its first colour.
    """

    frames: np.ndarray
    fps: float
    objects: tuple[ClipObject, ...]
    number: str | None
    number_frames: tuple[int, int]
    background: str
    masks: np.ndarray
    regions: tuple[Region, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.frames.shape[2], self.frames.shape[1]


def draw_clip(rng: np.random.Generator, size: tuple[int, int] = (80, 80), frames: int = 8) -> Clip:
    """Draw one clip.

    Args:
        rng: the only source of randomness.
        size: (width, height) in pixels, at least 64 each.
        frames: how many, at least 8.
    """
    check_size(size)
    if frames < 8:
        raise ValueError(f"A clip needs at least 8 frames, not {frames}.")
    width, height = size
    background = TEXTURES[int(rng.integers(len(TEXTURES) - 1))]
    ground = np.clip(texture(rng, width, height, background), 0, 255)
    places = Places(rng, (0, 0, width, height))
    objects = _plan_objects(rng, places, frames)
    plate = _plan_plate(rng, places)
    spell = _spell(rng, frames) if plate else (0, 0)
    pixels = np.repeat(ground[None], frames, axis=0)
    masks = np.zeros((frames, height, width), np.uint8)
    regions = [Region(k + 1, "object", f"{o.colors[0]} {o.shape}") for k, o in enumerate(objects)]
    for number, thing in enumerate(objects, start=1):
        _paint_object(rng, pixels, masks, number, thing)
    if plate:
        digits, x, y = plate
        shade = float(rng.uniform(205, 245))
        for t in range(*spell):
            glyphs = _paint_plate(pixels[t], x, y, digits, shade)
            marked = mark_glyphs(masks[t], glyphs, len(objects))
        regions += marked
    digits_shown = plate[0] if plate else None
    return Clip(to_image(pixels), FPS, objects, digits_shown, spell, background, masks, tuple(regions))


class _Look(NamedTuple):
    """What an object looks like at first: `side` is its box's in pixels."""

    shape: str
    color: str
    size: str
    side: int


def _plan_objects(rng: np.random.Generator, places: Places, frames: int) -> tuple[ClipObject, ...]:
    """One to three objects; those that move choose their place first, since they need the most room."""
    count = int(rng.integers(1, 4))
    shapes = [SHAPES[k] for k in rng.permutation(len(SHAPES))[:count].tolist()]
    colors = [list(COLORS)[k] for k in rng.permutation(len(COLORS))[:count].tolist()]
    roles = [ROLES[k] for k in rng.choice(len(ROLES), count, p=_ROLE_WEIGHTS).tolist()]
    roles.sort(key=lambda role: role != "moves")
    planned = []
    for shape, color, role, start in zip(shapes, colors, roles, _starts(rng, roles, frames), strict=True):
        size = ("small", "medium")[int(rng.integers(2))]
        look = _Look(shape, color, size, int(rng.choice(SIZES[size])))
        thing = (
            _mover(rng, places, frames, look) if role == "moves" else _stander(rng, places, frames, look, role, start)
        )
        if thing is not None:
            planned.append(thing)
    return tuple(planned)


def _starts(rng: np.random.Generator, roles: list[str], frames: int) -> list[int]:
    """When each object's change begins; those that appear do so at least two frames apart."""
    appearing = roles.count("appears")
    spare = frames - 2 - 2 * (appearing - 1)  # from frame 1 to the last but one
    firsts = sorted(int(v) for v in rng.integers(0, max(1, spare), appearing))
    order = rng.permutation(appearing).tolist()
    times = iter([1 + firsts[k] + 2 * k for k in order])
    return [next(times) if role == "appears" else int(rng.integers(2, frames - 2)) for role in roles]


def _stander(
    rng: np.random.Generator, places: Places, frames: int, look: _Look, role: str, start: int
) -> ClipObject | None:
    """An object that stays in its place, and from frame `start` on has another colour or is there.

    None where there is no room for it.
    """
    corner = places.take(look.side, look.side)
    if corner is None:
        return None
    box: Box = (*corner, corner[0] + look.side, corner[1] + look.side)
    boxes: tuple[Box | None, ...] = (box,) * frames
    colors = (look.color,) * frames
    if role == "becomes":
        others = [other for other in COLORS if other != look.color]
        new = others[int(rng.integers(len(others)))]
        colors = (look.color,) * start + (new,) * (frames - start)
    elif role == "appears":
        boxes = (None,) * start + (box,) * (frames - start)
    return ClipObject(look.shape, look.size, role, colors, boxes, frame=0 if role == "still" else start)


def _mover(rng: np.random.Generator, places: Places, frames: int, look: _Look) -> ClipObject | None:
    """An object that moves evenly along one axis, during all of the clip or at least half of it; None without room."""
    direction = tuple(DIRECTIONS)[int(rng.integers(len(DIRECTIONS)))]
    dx, dy = DIRECTIONS[direction]
    length, side = places.frame[2] if dx else places.frame[3], look.side
    way = int(rng.integers(int(np.ceil(_LEAST_MOVE * length)), length - side + 1))
    corner = places.take(side + way * abs(dx), side + way * abs(dy))
    if corner is None:
        return None
    x, y = corner[0] + way * (dx < 0), corner[1] + way * (dy < 0)
    duration = int(rng.integers(frames // 2, frames))
    begin = int(rng.integers(0, frames - duration))
    boxes: list[Box | None] = []
    for t in range(frames):
        gone = round(way * min(max(t - begin, 0), duration) / duration)
        left, top = x + dx * gone, y + dy * gone
        boxes.append((left, top, left + side, top + side))
    colors = (look.color,) * frames
    return ClipObject(look.shape, look.size, "moves", colors, tuple(boxes), direction, begin + 1)


def _plan_plate(rng: np.random.Generator, places: Places) -> tuple[str, int, int] | None:
    """The digits of a plate and its corner."""
    if rng.random() >= _FLASH_SHARE:
        return None
    digits = random_number(rng)
    corner = places.take(_GLYPH[0] * len(digits) + 4, _GLYPH[1] + 4)
    return None if corner is None else (digits, *corner)


def _spell(rng: np.random.Generator, frames: int) -> tuple[int, int]:
    """Two to half of the frames."""
    length = int(rng.integers(2, frames // 2 + 1))
    first = int(rng.integers(0, frames - length + 1))
    return first, first + length


def _paint_object(
    rng: np.random.Generator, pixels: np.ndarray, masks: np.ndarray, number: int, thing: ClipObject
) -> None:
    tints = {color: tinted(rng, COLORS[color]) for color in dict.fromkeys(thing.colors)}
    for t, (box, color) in enumerate(zip(thing.boxes, thing.colors, strict=True)):
        if box is not None:
            left, top, right, bottom = box
            alpha = shape_alpha(thing.shape, right - left)
            blend(pixels[t], left, top, alpha, tints[color])
            masks[t, top:bottom, left:right][alpha > 0.5] = number


def _paint_plate(pixels: np.ndarray, x: int, y: int, digits: str, shade: float) -> list[Glyph]:
    wide, high = _GLYPH
    pixels[y : y + high + 4, x : x + wide * len(digits) + 4] = shade
    glyphs = []
    for k, digit in enumerate(digits):
        left = x + 2 + k * wide
        blend(pixels, left, y + 2, glyph_alpha(digit, wide, high), np.full(3, 20.0))
        glyphs.append(Glyph("digit", digit, (left, y + 2, left + wide, y + 2 + high), k + 1))
    return glyphs
