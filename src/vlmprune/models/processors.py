"""Loading a model's processor, even if torchvision is not installed.

`AutoProcessor` builds every part that a processor class names. The processors of many families (Qwen-VL, InternVL,
SmolVLM, LLaVA-OneVision, ...) name a video processor, which transformers 5.23 can build only with torchvision. Without
it their checkpoints get no processor, although images do not need torchvision. `load_processor` then builds the
processor from the parts that images need: tokenizer, PIL image processor, chat template; and, for families whose videos
are prepared frame by frame, from what does that without torchvision (`models.frames`).
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.utils import cached_file, is_torchvision_available

from vlmprune.core.errors import UserError
from vlmprune.models.frames import frame_processor, settings_of
from vlmprune.models.weights import first_sentence

_QWEN_TYPES = ("qwen2_vl", "qwen2_5_vl")


class ImageOnlyQwenProcessor(Qwen2_5_VLProcessor):
    """A `Qwen2_5_VLProcessor` without its video processor; the same output for images and text.

    Saved, it names its parent class and a video processor like its image processor: the folder is an
    ordinary Qwen2.5-VL folder, which `AutoProcessor` loads where torchvision is installed.

    Args:
        image_processor: a Qwen2-VL image processor.
        tokenizer: a tokenizer that knows "<|image_pad|>" and "<|video_pad|>", or names others as its image_token and
            video_token.
        chat_template: a Jinja template, or None for the tokenizer's.

    Attributes:
        seconds: whether the model is told the time between frames of a video; Qwen2-VL is not.
    """

    seconds = True

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token = getattr(tokenizer, "image_token", "<|image_pad|>")
        self.video_token = getattr(tokenizer, "video_token", "<|video_pad|>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        # Past the parent's own __init__, which insists on a video processor.
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def _process_videos(self, videos: Any, **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
        data, texts = super()._process_videos(videos, **kwargs)
        if not self.seconds:
            data.pop("second_per_grid_ts")
        return data, texts

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "processor_class": "Qwen2_5_VLProcessor"}

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        shared = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "size")
        video = {"video_processor_type": "Qwen2VLVideoProcessor"}
        video |= {name: self.to_dict()["image_processor"][name] for name in shared}
        target = Path(save_directory) / "video_preprocessor_config.json"
        target.write_text(json.dumps(video, indent=2) + "\n", encoding="utf-8")


class _WithoutVideo(ProcessorMixin):
    """Stands between a family's processor class and `ProcessorMixin`, and leaves the video processor out."""

    # SmolVLM's chat template takes these from it, with or without a video
    video_processor = SimpleNamespace(num_frames=None, fps=None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        family: Any = type(self).__mro__[1]
        given = {**dict(zip(family.get_attributes(), args, strict=False)), **kwargs}
        super().__init__(**{name: part for name, part in given.items() if name != "video_processor"})

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]


def load_processor(path: str | Path) -> Any:
    """The processor of a model folder or hub id.

    Args:
        path: a local folder or a hub id.

    Returns:
        What `AutoProcessor` gives; where that needs torchvision for videos and there is none, a processor for images
        (an `ImageOnlyQwenProcessor` for Qwen2-VL and Qwen2.5-VL), and for videos too where `takes_videos` says so.

    Raises:
        UserError: there is no processor at `path`.
    """
    try:
        processor = _without_torchvision(path) or AutoProcessor.from_pretrained(path)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f'No processor could be loaded from "{path}": {first_sentence(error)}') from error
    if not isinstance(processor, ProcessorMixin):
        raise UserError(f'"{path}" has no processor for images and text, only a {type(processor).__name__}.')
    return processor


def takes_videos(processor: Any) -> bool:
    """Whether a processor prepares videos."""
    return callable(getattr(processor, "video_processor", None))


def _without_torchvision(path: str | Path) -> ProcessorMixin | None:
    """A processor put together of its parts, or None where `AutoProcessor` needs no torchvision."""
    if is_torchvision_available():
        return None
    config = AutoConfig.from_pretrained(path)
    if config.model_type in _QWEN_TYPES:
        processor: Any = _assemble_qwen(path)
        processor.seconds = config.model_type != "qwen2_vl"
    else:
        processor = _assemble(path, config)
    if processor is not None and (videos := frame_processor(config.model_type, path)) is not None:
        processor.video_processor = videos
    return processor


def _assemble(path: str | Path, config: Any) -> Any:
    """A processor without its video processor; None for a family whose processor has none."""
    family: Any = PROCESSOR_MAPPING.get(type(config), None) or _named(path)
    if family is None or {*family.get_attributes()} != {"image_processor", "tokenizer", "video_processor"}:
        return None
    narrow: Any = type(f"ImageOnly{family.__name__}", (family, _WithoutVideo), {})
    settings, _ = narrow.get_processor_dict(path)
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(path, backend="pil"),
        "tokenizer": AutoTokenizer.from_pretrained(path),
    }
    return narrow.from_args_and_dict([parts.get(name) for name in family.get_attributes()], settings)


def _named(path: str | Path) -> Any:
    """The processor class that the files of a checkpoint name, as GLM-OCR's do, whose model type has none; or None."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if kind := settings_of(path, name).get("processor_class"):
            return processor_class_from_name(kind)
    return None


def _assemble_qwen(path: str | Path) -> ImageOnlyQwenProcessor:
    tokenizer = AutoTokenizer.from_pretrained(path)
    images = AutoImageProcessor.from_pretrained(path, backend="pil")
    template = _chat_template(path) or tokenizer.chat_template
    return ImageOnlyQwenProcessor(images, tokenizer, chat_template=template)


def _chat_template(path: str | Path) -> str | None:
    """The template beside the processor: chat_template.jinja, or chat_template.json in older checkpoints."""

    def read(name: str) -> str | None:
        found = cached_file(
            str(path),
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(found).read_text(encoding="utf-8") if found else None

    if template := read("chat_template.jinja"):
        return template
    older = read("chat_template.json")
    return str(json.loads(older)["chat_template"]) if older else None
