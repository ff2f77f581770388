"""How a question is put to a model: the chat prompt, the pictures, and the arguments of `generate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmprune.bench.protocols import PLAIN, SHORT, Pixels, Protocol
from vlmprune.core.errors import Option, UserError
from vlmprune.data.sample import Sample
from vlmprune.data.video import Frames
from vlmprune.models.processors import takes_videos
from vlmprune.models.weights import first_sentence
from vlmprune.tasks.pictured import PICTURED
from vlmprune.tasks.task import Task
from vlmprune.tasks.wording import Wording

GREEDY = {"do_sample": False, "num_beams": 1}
# Settings of a checkpoint's own generation_config that would change greedy decoding, or only make it warn.
_NEUTRAL = {"temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
_MARK = re.compile(r"<image(?: ?(\d+))?>")


@dataclass(frozen=True)
class Asker:
    """Puts the questions of one task to one model.

    Attributes:
        protocol, task: whose words.
        processor, model_type: of the model.
        asked_pixels: limits of pictures instead of the protocol's.
        asked_length: of a reply, in tokens, instead of the protocol's.

    Raises:
        UserError: the processor does not take limits.
    """

    protocol: Protocol
    task: Task
    processor: Any
    model_type: str
    asked_pixels: Pixels | None = None
    asked_length: int | None = None

    def __post_init__(self) -> None:
        if self.pixels is not None and not takes_pixels(self.processor):
            raise UserError(
                Option("pixels", str(self.pixels)),
                f" is not possible: {type(self.processor).__name__} scales pictures to sizes of its own.",
            )

    @property
    def pixels(self) -> Pixels | None:
        """Limits of the pictures; None as the processor has them."""
        return self.asked_pixels or self.protocol.pixels.get(self.model_type)

    def wording(self, sample: Sample) -> Wording:
        return self.protocol.wording(self.task, sample, self.model_type)

    def kind(self, sample: Sample) -> str:
        """By what the replies to a sample are scored."""
        return self.protocol.kind(self.task, sample, self.model_type)

    def prompt(self, sample: Sample) -> str:
        """The chat prompt, as text."""
        wording = self.wording(sample)
        content = content_of(wording.of(sample), sample, wording.interleaved)
        return chat_prompt(self.processor, content, self.protocol.system(wording, self.model_type))

    def inputs(self, samples: Sequence[Sample]) -> Any:
        """Model inputs of a batch, padded on the left.

        Raises:
            UserError: a picture cannot be read, or the processor refuses the batch.
        """
        self.processor.tokenizer.padding_side = "left"
        media: dict[str, Any] = {}
        if any(sample.pictures for sample in samples):
            media["images"] = [list(sample.images) for sample in samples]
            if self.pixels is not None:
                # areas, whatever their names say
                size = {"shortest_edge": self.pixels.least, "longest_edge": self.pixels.most}
                media["images_kwargs"] = {"size": size}
        if clips := [frames for sample in samples if (frames := sample.frames) is not None]:
            media |= video_arguments(clips)
        texts = [self.prompt(sample) for sample in samples]
        try:
            return self.processor(text=texts, padding=True, return_tensors="pt", **media)
        except UserError:
            raise
        except ValueError as error:
            reason = first_sentence(error)
            raise UserError(
                f"The processor of {self.model_type} cannot prepare {samples[0].id}, ...: {reason}"
            ) from error

    def refuses(self, sample: Sample) -> str:
        """Why the model cannot be asked about what a sample shows, in words; "" where it can."""
        why = "" if sample.video is None else self.refuses_videos
        return f"it has a video, and {why}" if why else ""

    @property
    def refuses_videos(self) -> str:
        """Why the model cannot be asked about videos, in words; "" where it can."""
        instead = f" ({self.task.name}{PICTURED} shows the frames as pictures)"
        if takes_videos(self.processor):
            placed = places_videos(self.processor)
            return "" if placed else f"the chat template of {self.model_type} has no place for a video{instead}"
        if getattr(self.processor, "video_token", None) is None:
            return f"{self.model_type} takes pictures only{instead}"
        return (
            f"the processor of {self.model_type} needs torchvision for videos: install the one that fits your torch "
            "(https://pytorch.org)"
        )

    def generation(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        return generation_kwargs(self.asked_length or self.protocol.length(self.task, self.model_type))


def takes_pixels(processor: Any) -> bool:
    """Whether a processor scales pictures to between a least and a most number of pixels."""
    settings = getattr(type(processor.image_processor), "valid_kwargs", None)
    return {"min_pixels", "max_pixels"} <= getattr(settings, "__annotations__", {}).keys()


def video_arguments(clips: Sequence[Frames]) -> dict[str, Any]:
    """What a processor takes of videos whose frames are chosen."""
    about = [{"total_num_frames": clip.total, "fps": clip.fps, "frames_indices": list(clip.indices)} for clip in clips]
    return {"videos": [clip.pixels for clip in clips], "video_metadata": about, "do_sample_frames": False}


def content_of(text: str, sample: Sample, interleaved: bool = True) -> list[dict[str, str]]:
    """The parts of a chat message.

    Args:
        interleaved: whether pictures stand where `<image1>`, `<image2>`, ... do; else before the text with its marks.
    """
    count = len(sample.pictures)
    marks = [mark for mark in _MARK.finditer(text) if int(mark[1] or 1) <= count]
    if sample.video is not None:
        return [{"type": "video"}, {"type": "text", "text": text}]
    if not interleaved:
        return [*({"type": "image"} for _ in range(count)), {"type": "text", "text": text}]
    if [int(mark[1] or k + 1) for k, mark in enumerate(marks)] != list(range(1, count + 1)):
        plain = _MARK.sub("", text).strip() if not marks and _MARK.search(text) else text
        return [*({"type": "image"} for _ in range(count)), {"type": "text", "text": plain}]
    parts: list[dict[str, str]] = []
    start = 0
    for mark in marks:
        if before := text[start : mark.start()].strip(" \n" if not parts else ""):
            parts.append({"type": "text", "text": before})
        parts.append({"type": "image"})
        start = mark.end()
    if after := text[start:]:
        parts.append({"type": "text", "text": after})
    return parts


def chat_prompt(processor: Any, question: str | list[dict[str, str]], system: str = "") -> str:
    """A question in the model's chat template, as text.

    Args:
        question: about one image; or the parts of a message.
        system: a system message, "" for none.

    Raises:
        UserError: the processor has no chat template, or one that does not take a question.
    """
    from jinja2 import TemplateError  # heavy, and installed wherever templates are used

    content = [{"type": "image"}, {"type": "text", "text": question}] if isinstance(question, str) else question
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    try:
        return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (ValueError, TemplateError) as error:
        raise UserError(f"This model's processor cannot word a chat prompt: {first_sentence(error)}") from error


def places_videos(processor: Any) -> bool:
    """Whether the chat template of a processor that takes videos has a place for one."""
    return processor.video_token in chat_prompt(processor, [{"type": "video"}, {"type": "text", "text": "?"}])


def protocol_for(processor: Any) -> Protocol:
    """The bare question for a tokenizer of so few words that it cannot spell the tails (the embedded models)."""
    tokenizer = processor.tokenizer
    unknown = tokenizer.unk_token_id
    ids = tokenizer(SHORT.tails["words"], add_special_tokens=False)["input_ids"]
    return PLAIN if unknown is not None and unknown in ids else SHORT


def generation_kwargs(max_new_tokens: int) -> dict[str, Any]:
    """Greedy decoding, whatever the checkpoint's own settings are."""
    return {**GREEDY, **_NEUTRAL, "max_new_tokens": max_new_tokens}
