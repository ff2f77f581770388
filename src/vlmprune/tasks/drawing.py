"""What generated tasks show, drawn with the questions about it: scenes, pages, screenshots, two scenes, clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from PIL import Image

from vlmprune.assets.asking_pairs import draw_pair
from vlmprune.assets.clips import Clip, draw_clip
from vlmprune.assets.pages import draw_page
from vlmprune.assets.questions import Asker, Question, ask_clip, ask_page, ask_pair, ask_screen
from vlmprune.assets.screens import draw_screen
from vlmprune.assets.world import Scene, draw_scene
from vlmprune.data.video import Frames
from vlmprune.tasks.canvas import Canvas

PHOTO_SHARE = 0.25
CLIP_SIDE = 80  # pixels of a clip's frame, which holds fewer and smaller things than a picture

Pictures = tuple[Scene, ...]
Drawer = Callable[[np.random.Generator, Canvas, str], tuple[Pictures | Clip, list[Question]]]


@dataclass(frozen=True, eq=False)
class DrawnPicture:
    """A generated scene as a picture.

    Attributes:
        scene: with its objects and masks.
        scale: enlargement before the model's processor sees it.
        regions: ids in `scene.masks` that the question is about.
    """

    scene: Scene
    scale: float
    regions: tuple[int, ...]

    def open(self) -> Image.Image:
        return enlarged(self.scene.image, self.scale)

    def content(self) -> bytes:
        return repr((self.scene.image.shape, self.scale)).encode() + self.scene.image.tobytes()


@dataclass(frozen=True, eq=False)
class DrawnClip:
    """A generated clip as a video, of which all frames are shown.

    Attributes:
        clip: with its objects and masks.
        scale: enlargement before the model's processor sees it.
        regions: ids in `clip.masks` that the question is about.
    """

    clip: Clip
    scale: float
    regions: tuple[int, ...]

    def open(self) -> Frames:
        pixels = np.stack([np.asarray(enlarged(frame, self.scale)) for frame in self.clip.frames])
        return Frames(pixels, tuple(range(len(pixels))), len(pixels), self.clip.fps)

    def count(self) -> int:
        return len(self.clip.frames)

    def digest(self) -> bytes:
        shown = repr((self.clip.frames.shape, self.clip.fps, self.scale)).encode()
        return sha256(shown + self.clip.frames.tobytes()).digest()


def enlarged(pixels: np.ndarray, scale: float) -> Image.Image:
    """A picture of uint8 [H, W, 3] pixels, `scale` times as large."""
    picture = Image.fromarray(pixels)
    if scale == 1.0:
        return picture
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)


def scenes(rng: np.random.Generator, canvas: Canvas, category: str) -> tuple[Pictures, list[Question]]:
    """One scene with a held-out photograph behind it, or a texture."""
    scene = draw_scene(rng, _size(rng, canvas), photos="held_out", photo_share=PHOTO_SHARE)
    return (scene,), Asker(scene, rng).ask(category)


def pages(rng: np.random.Generator, canvas: Canvas, category: str) -> tuple[Pictures, list[Question]]:
    page = draw_page(rng, _size(rng, canvas))
    return (page,), ask_page(page, rng, category)


def screens(rng: np.random.Generator, canvas: Canvas, category: str) -> tuple[Pictures, list[Question]]:
    screen = draw_screen(rng, _size(rng, canvas))
    return (screen,), ask_screen(screen, rng, category)


def pairs(rng: np.random.Generator, canvas: Canvas, category: str) -> tuple[Pictures, list[Question]]:
    """Two scenes of one size."""
    pair = draw_pair(rng, _size(rng, canvas), photos="held_out", photo_share=PHOTO_SHARE)
    return pair, ask_pair(pair, rng, category)


def clips(rng: np.random.Generator, canvas: Canvas, category: str) -> tuple[Clip, list[Question]]:
    """A clip of square frames, whatever the canvas."""
    clip = draw_clip(rng, (CLIP_SIDE, CLIP_SIDE))
    return clip, ask_clip(clip, rng, category)


def _size(rng: np.random.Generator, canvas: Canvas) -> tuple[int, int]:
    return canvas.sizes[int(rng.integers(len(canvas.sizes)))]
