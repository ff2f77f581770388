"""What the proofs ask a model: one prompt, a batch with padding, a second turn; and its cached generation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from vlmprune.models.base import Adapter
from vlmprune.runtime.oracle import TOKEN_ARGUMENTS, with_text

TOKENS = 6  # generated in each turn
SLIDING = "sliding_attention"
QUESTION = 4  # tokens of the second turn's question


@dataclass(frozen=True)
class Prompts:
    """One prompt or several, made from the inputs of one, so that they exist for every model.

    Attributes:
        name: for people.
        rows: each prompt by itself, without padding.
        inputs: all of them in one batch, padded on the left.
        question: [1, Q] tokens of text that a second turn asks.
    """

    name: str
    rows: list[dict[str, Any]]
    inputs: dict[str, Any]
    question: Tensor

    @property
    def padding(self) -> list[int]:
        """Tokens of padding before each prompt."""
        return (self.inputs["attention_mask"] == 0).sum(1).tolist()  # type: ignore[no-any-return]


def one_prompt(adapter: Adapter, inputs: Mapping[str, Any]) -> Prompts:
    """The prompt as it came from the processor, [1, S]."""
    row = {**inputs, "attention_mask": inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))}
    return Prompts("one prompt", [row], row, _text(adapter, row)[None, -QUESTION:])


def padded_batch(adapter: Adapter, inputs: Mapping[str, Any]) -> Prompts:
    """The prompt, and the same one said twice: padding, and twice as many visual tokens in the second row."""
    single = one_prompt(adapter, inputs)
    short, filler = single.inputs, int(_text(adapter, single.inputs)[-1])
    width = short["input_ids"].shape[1]
    apart = {**dict.fromkeys(TOKEN_ARGUMENTS, 1), **adapter.side_by_side}
    long = {name: _joined([value, value], axis=apart.get(name, 0)) for name, value in short.items()}
    batch = {}
    for name, value in short.items():
        if name in TOKEN_ARGUMENTS:  # the filler is any text: the mask hides it
            value = nn.functional.pad(value, (width, 0), value=filler if name == "input_ids" else 0)
        batch[name] = _joined([value, long[name]], axis=adapter.side_by_side.get(name, 0))
    return Prompts("a batch with padding", [short, long], batch, single.question)


def _text(adapter: Adapter, inputs: Mapping[str, Any]) -> Tensor:
    """Ids of the first prompt's text."""
    ids = inputs["input_ids"][0]
    return ids[~torch.isin(ids, torch.tensor(list(adapter.placeholder_ids.values()), device=ids.device))]


def _joined(values: Sequence[Any], axis: int) -> Any:
    """Tensors along an axis; other arguments are lists with an entry for each image."""
    if isinstance(values[0], Tensor):
        return torch.cat(list(values), dim=axis)
    return [entry for value in values for entry in value]


@dataclass(frozen=True)
class Answer:
    """What a model generated.

    Attributes:
        tokens: [B, T].
        logits: [B, T, V], from which each token was chosen.
        cache: by the name under which the model takes it.
        positions: position ids of the prompt as `generate` counted them, [..., B, S]; None where the model counts.
    """

    tokens: Tensor
    logits: Tensor
    cache: dict[str, Cache] = field(repr=False)
    positions: Tensor | None = None


@torch.no_grad()
def generate(
    adapter: Adapter, inputs: Mapping[str, Any], count: int = TOKENS, cache: Mapping[str, Cache] | None = None
) -> Answer:
    """Greedy decoding of exactly `count` tokens with a cache, none of them a placeholder, which has no image behind it.

    Args:
        inputs: of the whole conversation; without pixels where `cache` holds the first turn, as `Answer.cache` gave it.
    """
    model: Any = adapter.model
    never = {*(model.generation_config.suppress_tokens or ()), *adapter.placeholder_ids.values()}
    positions: list[Tensor | None] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions.append(kwargs.get("position_ids"))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        out = model.generate(
            **inputs,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            suppress_tokens=sorted(never),
            return_dict_in_generate=True,
            output_logits=True,
            **(cache or {}),
        )
    finally:
        handle.remove()
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    left = {name: value for name, value in out.items() if isinstance(value, Cache)}
    return Answer(tokens, torch.stack(out.logits, dim=1), left, positions[0])


@dataclass(frozen=True)
class Conversation:
    """The turns of one, and all text behind the prompts: [B, N]."""

    turns: list[Answer]
    said: Tensor


def converse(adapter: Adapter, prompts: Prompts, turns: int = 2) -> Conversation:
    """Generate, and for a second turn ask more on the same cache."""
    first = generate(adapter, prompts.inputs)
    if turns == 1:
        return Conversation([first], first.tokens)
    behind = torch.cat([first.tokens, prompts.question.expand(len(first.tokens), -1)], dim=1)
    longer = with_text(adapter, prompts.inputs, behind)
    text = {name: longer[name] for name in TOKEN_ARGUMENTS if name in longer}
    second = generate(adapter, text, cache=first.cache)
    return Conversation([first, second], torch.cat([behind, second.tokens], dim=1))


@dataclass(frozen=True)
class Asked:
    """Prompts, and how the unpruned model answered them.

    Attributes:
        unpruned: its answers to the turns that it managed.
        failure: the error of the first turn that it did not manage, None where it managed both.
    """

    prompts: Prompts
    unpruned: list[Answer]
    failure: Exception | None = None


def ask(adapter: Adapter, prompts: Prompts) -> Asked:
    """Both turns of the unpruned model, or as many as it can."""
    failure: Exception | None = None
    for turns in (2, 1):
        try:
            return Asked(prompts, converse(adapter, prompts, turns).turns, failure)
        except Exception as error:  # transformers' own, which pruning is not to blame for
            failure = error
    return Asked(prompts, [], failure)


def narrower_window(adapter: Adapter, prompts: Prompts) -> int | None:
    """A sliding window that ends within these prompts, where the model slides one that does not; else None."""
    layers = range(len(adapter.decoder_layers))
    window = getattr(adapter.text_config, "sliding_window", None)
    length = prompts.inputs["input_ids"].shape[1]
    if not window or window < length or all(adapter.layer_kind(layer) != SLIDING for layer in layers):
        return None
    return max(2, length // 4)


@contextmanager
def sliding_window(adapter: Adapter, window: int | None) -> Iterator[None]:
    """The model with a sliding window of that many tokens; unchanged where it is None."""
    text = adapter.text_model
    holders = [] if window is None else [adapter.text_config, text.config, *text.modules()]
    own = {id(holder): (holder, value) for holder in holders if (value := _window(holder)) is not None}
    try:
        for holder, _ in own.values():
            holder.sliding_window = window
        yield
    finally:
        for holder, value in own.values():
            holder.sliding_window = value


def _window(holder: Any) -> int | None:
    value = vars(holder).get("sliding_window")
    return value if isinstance(value, int) else None
