"""LLaVA-NeXT-Video: images as LLaVA-NeXT's; videos of 6 x 6 patches a frame, pooled to 3 x 3."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vlmprune.testing.anyres import NEXT, anyres
from vlmprune.testing.family import ONE_SIZE, OUTSIDE, Family
from vlmprune.testing.images import FRAMES, blocks, frames
from vlmprune.testing.weights import IMAGE, LLAMA, VIDEO, builder, clip, pinpoints


def _build(side: int) -> Callable[..., Any]:
    return builder(
        "LlavaNextVideo", clip(side), LLAMA, image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=pinpoints(side),
    )  # fmt: skip


_slots = [slot for frame in range(FRAMES) for slot in blocks(6, 6, frame, 2)]
_frames = replace(frames(24, [VIDEO] * len(_slots), _slots), side=2)
_images = Family(
    "llava_next_video", _build(16), anyres(NEXT, 4), cls=True, used=-2, tower_rows=True, lacks={"downsample": OUTSIDE}
)
FAMILIES = {
    "llava_next_video": _images,
    # older versions lose videos where they repeat a prompt for beams
    "llava_next_video video": replace(
        _images, build=_build(24), kind=_frames, since=(5, 24), lacks={"downsample": ONE_SIZE}
    ),
}
