"""The protocols: words, system messages, lengths of replies and limits of pictures, each as its toolkit has them.

A protocol's words for a task stand with the task (`tasks/sets`); here is what all of its tasks share. How a reply is
read follows from the kind of answer, or from the wording where a toolkit reads it in a way of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlmprune.core.errors import Option, UserError
from vlmprune.data.sample import Sample
from vlmprune.tasks.task import Task
from vlmprune.tasks.wording import Wording

EVERY = ""  # model types that are not named


@dataclass(frozen=True)
class Pixels:
    """Limits of a picture's size, in pixels; a processor that takes pictures of any size scales it to between them."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            asked = Option("pixels", f"{self.least},{self.most}")
            raise UserError(asked, " is not a range: give the least and the most pixels of a picture, both above 0.")

    def __str__(self) -> str:
        return f"{self.least},{self.most}"


@dataclass(frozen=True)
class Protocol:
    """A way to ask that others have used, so that figures can be compared with theirs.

    Attributes:
        name: as it stands in results.
        version: raised when anything in it changes.
        tails: what follows the question, by category or else by kind of answer, where the task has no wording for it.
        systems: system messages by model type.
        lengths: of a reply, in tokens, by model type, where the wording does not say; without one, as the task says.
        pixels: limits of pictures by model type; without them, the processor's own.
        summary: one line.
    """

    name: str
    version: int = 1
    tails: Mapping[str, str] = field(default_factory=dict)
    systems: Mapping[str, str] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    pixels: Mapping[str, Pixels] = field(default_factory=dict)
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

    def kind(self, task: Task, sample: Sample, model_type: str = "") -> str:
        """By what replies to a sample are scored; without a model type as models without words of their own."""
        return self.wording(task, sample, model_type).reads or sample.kind

    def system(self, wording: Wording, model_type: str) -> str:
        """The system message, "" for none."""
        return wording.system or self.systems.get(model_type, "")

    def length(self, task: Task, model_type: str) -> int:
        """How many tokens a reply may have."""
        named = self.named(task, model_type)
        if named is not None and named.max_new_tokens is not None:
            return named.max_new_tokens
        return self.lengths.get(model_type) or self.lengths.get(EVERY) or task.max_new_tokens


def _patches(least: int, most: int, side: int = 28) -> Pixels:
    """Limits in visual tokens, each of side x side pixels."""
    return Pixels(least * side**2, most * side**2)


PLAIN = Protocol("plain", summary="the bare question, for tokenizers of few words")
SHORT = Protocol(
    "short",
    tails={
        "yesno": "\nAnswer yes or no.",
        "choice": "\nAnswer with the letter of the right option.",
        "option": "\nAnswer with the letter of the right option.",
        "number": "\nAnswer with a number.",
        **dict.fromkeys(("words", "exact", "vqa", "anls", "relaxed"), "\nAnswer with a single word or phrase."),
        "box": "\nAnswer with its left, top, right and bottom edge, each in percent of the picture's side.",
        **dict.fromkeys(("ocr", "entry", "flash"), "\nAnswer with the digits only."),
        **dict.fromkeys(("letter", "key", "button_letter"), "\nAnswer with the letter only."),
        "instruct": "",  # carries its own instruction
    },
    summary="asks for the form of the answer in one sentence; where nobody's figures are to be met",
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
LMMS = Protocol(
    "lmms",
    tails=SHORT.tails,
    systems={"llava": _VICUNA},
    lengths={EVERY: 1024, "qwen2_vl": 128, "qwen2_5_vl": 128},
    pixels=dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), Pixels(256 * 28**2, 1_605_632)),
    summary="the words of lmms-eval 0.7",
)
VLMEVALKIT = Protocol(
    "vlmevalkit",
    tails=SHORT.tails,
    systems={"llava": _VICUNA.replace("user", "human")},
    lengths={EVERY: 2048, "llava": 512, "llava_next": 512, "internvl": 4096},
    pixels=dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _patches(1280, 16384)),
    summary="the words of VLMEvalKit, which has some for a model family",
)
LLAVA = Protocol(
    "llava",
    tails=SHORT.tails,
    systems={"llava": _VICUNA},
    lengths={EVERY: 128},
    summary="the words of LLaVA-1.5's own scripts",
)
PROTOCOLS = {protocol.name: protocol for protocol in (PLAIN, SHORT, LMMS, VLMEVALKIT, LLAVA)}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(Option("protocol", name), f" is not known: choose from {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
