"""Video-LLaVA: a tower for images and one for videos, whose frames keep their CLS token as a slot."""

import inspect
from dataclasses import replace

from transformers import VideoLlavaForConditionalGeneration

from vlmprune.testing.family import OUTSIDE, Family
from vlmprune.testing.images import FRAMES, Arguments, blocks, by_turns, frames, whole
from vlmprune.testing.weights import IMAGE, LLAMA, VIDEO, builder, clip


def _named(arguments: Arguments) -> Arguments:
    """As forward calls them: the pixels of images had another name in older versions of transformers."""
    if "pixel_values" in inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters:
        return arguments
    return {"pixel_values_images" if name == "pixel_values" else name: value for name, value in arguments.items()}


# 4x4 patches a frame behind its CLS token
_frames = frames(16, [VIDEO] * 17 * FRAMES, [slot for frame in range(FRAMES) for slot in [[], *blocks(4, 4, frame)]])
_images = Family(
    "video_llava", builder("VideoLlava", clip(16), LLAMA, image_token_index=IMAGE, video_token_index=VIDEO),
    whole(16), joined=_named, cls=True, used=-2, tower_rows=True,
)  # fmt: skip
FAMILIES = {
    "video_llava": _images,
    "video_llava video": replace(_images, kind=_frames, lacks={"downsample": OUTSIDE}),
    "video_llava mixed": replace(_images, kind=by_turns(_images.kind, _frames), lacks={"downsample": OUTSIDE}),
}
