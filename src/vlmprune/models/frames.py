"""Videos for processors whose video processor needs torchvision, where there is none.

transformers prepares the frames of these families as it prepares pictures, with the settings of the video processor:
so its PIL image processor does it, and the frames are put together as the model takes them. The pixels differ from
those of transformers' video processor as its two image processors differ from each other: by how they resize.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import cached_file
from transformers.video_utils import VideoMetadata

from vlmprune.core.errors import UserError

# What transformers' video processors assume where a checkpoint does not say.
_ASSUMED: dict[str, dict[str, Any]] = {
    "video_llava": {
        "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
        "default_to_square": False,
    },
    "llava_onevision": {"size": {"height": 384, "width": 384}},
    "qwen2_vl": {"size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}},
}  # fmt: skip
_ASSUMED["qwen2_5_vl"] = _ASSUMED["qwen2_vl"]
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_KNOWN = ("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor", "patch_size", "merge_size",
          "temporal_patch_size", "min_pixels", "max_pixels", "default_to_square")  # fmt: skip


class FrameProcessor:
    """Stands in for a video processor: frames [frames, height, width, 3] that were already chosen become pixels.

    Args:
        pictures: the PIL image processor, with the settings of the video processor.
    """

    def __init__(self, pictures: Any) -> None:
        self.pictures = pictures

    def __call__(
        self, videos: Sequence[np.ndarray], video_metadata: Sequence[Mapping[str, Any]] = (), **_: Any
    ) -> BatchFeature:
        """`pixel_values_videos` of all videos, as the family's model takes them, and `video_metadata` as objects."""
        about = [VideoMetadata(**one) for one in video_metadata]
        return BatchFeature({**self.join([self._frames(video) for video in videos]), "video_metadata": about})

    def _frames(self, video: np.ndarray) -> Any:
        return self.pictures(list(video), return_tensors="pt", input_data_format="channels_last")

    def join(self, videos: list[Any]) -> dict[str, Tensor]:
        """[videos, frames, channels, height, width]."""
        pixels = [video["pixel_values"] for video in videos]
        if len({tuple(one.shape) for one in pixels}) > 1:
            raise UserError("Videos of one batch must have the same number of frames for this model.")
        return {"pixel_values_videos": torch.stack(pixels)}


class PatchFrameProcessor(FrameProcessor):
    """The same for Qwen2-VL, whose patches reach over several frames; the last frame is repeated to make them whole."""

    def __init__(self, pictures: Any) -> None:
        super().__init__(pictures)
        self.merge_size, self.temporal_patch_size = pictures.merge_size, pictures.temporal_patch_size

    def join(self, videos: list[Any]) -> dict[str, Tensor]:
        """[patches of all videos, channels * frames a patch * patch * patch], and each video's grid."""
        pixels, grids = [], []
        for video in videos:
            frames, depth = video["image_grid_thw"], self.temporal_patch_size
            _, rows, cols = frames[0].tolist()
            # of a picture, which stands in its patches `depth` times, once
            once = video["pixel_values"].view(len(frames), rows * cols, 3, depth, -1)[:, :, :, 0]
            once = torch.cat([once, once[-1:].expand(-len(once) % depth, -1, -1, -1)])
            patches = once.unflatten(0, (-1, depth)).permute(0, 2, 3, 1, 4)
            pixels.append(patches.flatten(2).flatten(0, 1))
            grids.append([len(once) // depth, rows, cols])
        return {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}


def frame_processor(model_type: str, path: str | Path) -> FrameProcessor | None:
    """What prepares the videos of a checkpoint, or None where frames are not prepared as pictures are."""
    if model_type not in _ASSUMED:
        return None
    found = _settings(path)
    switches = {name: value for name, value in found.items() if name.startswith("do_") and name != "do_sample_frames"}
    settings = {**_CLIP, **_ASSUMED[model_type], **{name: found[name] for name in _KNOWN if name in found}, **switches}
    if model_type.startswith("qwen"):
        return PatchFrameProcessor(Qwen2VLImageProcessorPil(**settings))
    return FrameProcessor(PilPictures(**{"do_resize": True, "do_rescale": True, "do_normalize": True, **settings}))


def _settings(path: str | Path) -> dict[str, Any]:
    """A checkpoint's settings of its video processor, or else of its image processor, where transformers looks."""
    whole = settings_of(path, "processor_config.json")
    if "video_processor" in whole:
        return whole["video_processor"]
    return settings_of(path, "video_preprocessor_config.json") or settings_of(path, "preprocessor_config.json")


def settings_of(path: str | Path, name: str) -> dict[str, Any]:
    """A file of a checkpoint; nothing where it has none."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(str(path), name, **quiet)
    return json.loads(Path(found).read_text(encoding="utf-8")) if found else {}


class PilPictures(PilBackend):
    """Pictures resized, cropped, scaled and normalised by PIL, as the settings say."""

    resample = 3  # bicubic
    rescale_factor = 1 / 255
    do_convert_rgb = True
