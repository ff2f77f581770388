"""How a question is put to a model: its words by protocol, the chat prompt, and the arguments of `generate`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmprune.core.errors import Option, UserError
from vlmprune.data.sample import Sample
from vlmprune.data.video import Frames
from vlmprune.models.processors import takes_videos
from vlmprune.models.weights import first_sentence
from vlmprune.tasks.task import Task
from vlmprune.tasks.wording import Wording

GREEDY = {"do_sample": False, "num_beams": 1}
# Settings of a checkpoint's own generation_config that would change greedy decoding, or only make it warn.
_NEUTRAL = {"temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
_MARK = re.compile(r"<image(?: ?(\d+))?>")


@dataclass(frozen=True)
class Protocol:
    """A way to ask that others have used, so that figures can be compared with theirs.

    Attributes:
        name: as it stands in results.
        version: raised when its words change.
        tails: what follows the question, by category or else by kind of answer, where the task has no wording for it.
        summary: one line.
    """

    name: str
    version: int = 1
    tails: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""

    def __str__(self) -> str:
        return self.name if self.version == 1 else f"{self.name}/{self.version}"

    def named(self, task: Task, model_type: str) -> Wording | None:
        """The task's own wording under this protocol, for a model type in its own words where there are any."""
        return task.wordings.get(f"{self.name}/{model_type}") or task.wordings.get(self.name)

    def wording(self, task: Task, sample: Sample, model_type: str) -> Wording:
        """How a question of the task is asked."""
        if (named := self.named(task, model_type)) is not None:
            return named
        tail = self.tails.get(sample.category, self.tails.get(sample.kind, ""))
        options = "\n{options}" if self.asks_options(sample) else ""
        return Wording("{hint}\n{question}" + options + tail)

    def asks_options(self, sample: Sample) -> bool:
        """Whether the options are to be written under the question."""
        return bool(sample.options) and sample.kind != "choice"  # the generated ones stand in the question


PLAIN = Protocol("plain", summary="the bare question, for tokenizers of few words")
SHORT = Protocol(
    "short",
    tails={
        "yesno": "\nAnswer yes or no.",
        "choice": "\nAnswer with the letter of the right option.",
        "option": "\nAnswer with the letter of the right option.",
        "number": "\nAnswer with a number.",
        "words": "\nAnswer with a single word or phrase.",
        "ocr": "\nAnswer with the digits only.",
        "letter": "\nAnswer with the letter only.",
        "instruct": "",  # carries its own instruction
    },
    summary="asks for the form of the answer in one sentence",
)
LMMS = Protocol("lmms", tails=SHORT.tails, summary="the words of lmms-eval")
VLMEVALKIT = Protocol("vlmevalkit", tails=SHORT.tails, summary="the words of VLMEvalKit, which has some a model family")
LLAVA = Protocol("llava", tails=SHORT.tails, summary="the words of LLaVA-1.5's own scripts")
PROTOCOLS = {protocol.name: protocol for protocol in (PLAIN, SHORT, LMMS, VLMEVALKIT, LLAVA)}


@dataclass(frozen=True)
class Asker:
    """Puts the questions of one task to one model.

    Attributes:
        protocol, task: whose words.
        processor, model_type: of the model.
    """

    protocol: Protocol
    task: Task
    processor: Any
    model_type: str

    def wording(self, sample: Sample) -> Wording:
        return self.protocol.wording(self.task, sample, self.model_type)

    def kind(self, sample: Sample) -> str:
        """By what the replies to a sample are scored."""
        return self.wording(sample).reads or sample.kind

    def prompt(self, sample: Sample) -> str:
        """The chat prompt, as text."""
        wording = self.wording(sample)
        return chat_prompt(self.processor, content_of(wording.of(sample), sample), wording.system)

    def inputs(self, samples: Sequence[Sample]) -> Any:
        """Model inputs of a batch, padded on the left.

        Raises:
            UserError: a picture cannot be read, or the processor refuses the batch.
        """
        self.processor.tokenizer.padding_side = "left"
        media: dict[str, Any] = {}
        if any(sample.pictures for sample in samples):
            media["images"] = [list(sample.images) for sample in samples]
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
        if sample.video is None or takes_videos(self.processor):
            return ""
        if getattr(self.processor, "video_token", None) is None:
            return f"it has a video, and {self.model_type} takes pictures only"
        return (
            f"it has a video, for which the processor of {self.model_type} needs torchvision: install the one that "
            "fits your torch (https://pytorch.org)"
        )

    def generation(self) -> dict[str, Any]:
        """Arguments of `generate`; the length is the wording's, or else the task's."""
        named = self.protocol.named(self.task, self.model_type)
        return generation_kwargs((named and named.max_new_tokens) or self.task.max_new_tokens)


def video_arguments(clips: Sequence[Frames]) -> dict[str, Any]:
    """What a processor takes of videos whose frames are chosen."""
    about = [{"total_num_frames": clip.total, "fps": clip.fps, "frames_indices": list(clip.indices)} for clip in clips]
    return {"videos": [clip.pixels for clip in clips], "video_metadata": about, "do_sample_frames": False}


def content_of(text: str, sample: Sample) -> list[dict[str, str]]:
    """The parts of a chat message: pictures where `<image1>`, `<image2>`, ... stand, or before the text."""
    count = len(sample.pictures)
    marks = [mark for mark in _MARK.finditer(text) if int(mark[1] or 1) <= count]
    if sample.video is not None:
        return [{"type": "video"}, {"type": "text", "text": text}]
    if [int(mark[1] or k + 1) for k, mark in enumerate(marks)] != list(range(1, count + 1)):
        plain = _MARK.sub("", text).strip() if not marks else text
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


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(Option("protocol", name), f" is not known: choose from {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def protocol_for(processor: Any) -> Protocol:
    """The bare question for a tokenizer of so few words that it cannot spell the tails (the embedded models)."""
    tokenizer = processor.tokenizer
    unknown = tokenizer.unk_token_id
    ids = tokenizer(SHORT.tails["words"], add_special_tokens=False)["input_ids"]
    return PLAIN if unknown is not None and unknown in ids else SHORT


def generation_kwargs(max_new_tokens: int) -> dict[str, Any]:
    """Greedy decoding, whatever the checkpoint's own settings are."""
    return {**GREEDY, **_NEUTRAL, "max_new_tokens": max_new_tokens}
