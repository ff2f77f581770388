"""How a question is put to a model, and the arguments of `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmprune.bench.tasks import Sample
from vlmprune.core.errors import UserError
from vlmprune.models.weights import first_sentence

GREEDY = {"do_sample": False, "num_beams": 1}
# Settings of a checkpoint's own generation_config that would change greedy decoding, or only make it warn.
_NEUTRAL = {"temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Protocol:
    """A wording.

    Attributes:
        name: as it stands in results.
        tails: what follows the question, by category or else by kind of answer.
    """

    name: str
    tails: Mapping[str, str]

    def prompt(self, processor: Any, sample: Sample) -> str:
        """The chat prompt with one image placeholder, as text."""
        tail = self.tails.get(sample.category, self.tails.get(sample.kind, ""))
        return chat_prompt(processor, sample.question + tail)

    def inputs(self, processor: Any, samples: Sequence[Sample]) -> Any:
        """Model inputs of a batch, padded on the left."""
        processor.tokenizer.padding_side = "left"
        return processor(
            images=[[sample.image] for sample in samples],
            text=[self.prompt(processor, sample) for sample in samples],
            padding=True,
            return_tensors="pt",
        )


def chat_prompt(processor: Any, question: str) -> str:
    """A question about one image in the model's chat template, as text.

    Raises:
        UserError: the processor has no chat template, or one that does not take a question.
    """
    from jinja2 import TemplateError  # heavy, and installed wherever templates are used

    content = [{"type": "image"}, {"type": "text", "text": question}]
    try:
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    except (ValueError, TemplateError) as error:
        raise UserError(f"This model's processor cannot word a chat prompt: {first_sentence(error)}") from error


PLAIN = Protocol("plain", {})
SHORT = Protocol(
    "short",
    {
        "yesno": "\nAnswer yes or no.",
        "choice": "\nAnswer with the letter of the right option.",
        "number": "\nAnswer with a number.",
        "words": "\nAnswer with a single word or phrase.",
        "ocr": "\nAnswer with the digits only.",
        "letter": "\nAnswer with the letter only.",
        "instruct": "",  # carries its own instruction
    },
)


def protocol_for(processor: Any) -> Protocol:
    """The bare question for a tokenizer of so few words that it cannot spell the tails (the embedded models)."""
    tokenizer = processor.tokenizer
    unknown = tokenizer.unk_token_id
    ids = tokenizer(SHORT.tails["words"], add_special_tokens=False)["input_ids"]
    return PLAIN if unknown is not None and unknown in ids else SHORT


def generation_kwargs(max_new_tokens: int) -> dict[str, Any]:
    """Greedy decoding, whatever the checkpoint's own settings are."""
    return {**GREEDY, **_NEUTRAL, "max_new_tokens": max_new_tokens}
