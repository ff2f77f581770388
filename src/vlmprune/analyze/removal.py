"""Asking a model with a random part of its visual tokens, or of its question, taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vlmprune
from vlmprune.bench.load import Loaded
from vlmprune.bench.protocol import Asker, generation_kwargs, protocol_for
from vlmprune.data.sample import Sample
from vlmprune.models import adapter_for
from vlmprune.scoring.replies import score_reply
from vlmprune.tasks import default_tasks, get_task
from vlmprune.tasks.canvas import canvas_for
from vlmprune.tasks.task import Place

VISUAL, TEXT = "visual", "text"


class Removal(NamedTuple):
    """What is taken away: a share of the tokens of a kind. The runtime takes visual tokens, we take text."""

    kind: str
    share: float


class Outcome(NamedTuple):
    """What came of a question.

    Attributes:
        score: of the reply, from 0 to 1.
        loss: mean cross-entropy of the reply that the model gives to the whole question, in nats per token.
        removed: the share of the tokens that was really taken away.
    """

    score: float
    loss: float
    removed: float


@dataclass(frozen=True)
class Asking:
    """A question as a model reads it.

    Attributes:
        inputs: of the model, for one question.
        sample: with the right answers.
        kind: by what replies are scored.
        words: columns of the prompt that hold the question's text, special tokens not among them.
        length: of a reply at most.
    """

    inputs: dict[str, Any]
    sample: Sample
    kind: str
    words: Tensor
    length: int


def askings(loaded: Loaded, count: int) -> Iterator[Asking]:
    """The first questions of the generated tasks about one picture, in turn."""
    place = Place(canvas_for(loaded.model.config))
    tasks = [task for task in map(get_task, default_tasks()) if not task.has_videos]
    streams = [(task, iter(task.samples(place))) for task in tasks]
    asked = (
        _asking(loaded, Asker(protocol_for(loaded.processor), task, loaded.processor, _type(loaded)), next(stream))
        for _ in range(count)
        for task, stream in streams
    )
    return islice((one for one in asked if one is not None), count)


def _type(loaded: Loaded) -> str:
    return str(loaded.model.config.model_type)


def _asking(loaded: Loaded, asker: Asker, sample: Sample) -> Asking | None:
    """None for a question about several pictures."""
    if len(sample.pictures) != 1:
        return None
    made = asker.inputs([sample]).to(loaded.model.device, loaded.model.dtype)
    visual = list(adapter_for(loaded.model).placeholder_ids.values())
    ids = made["input_ids"][0].cpu()
    outside = torch.tensor([*visual, *loaded.processor.tokenizer.all_special_ids])
    is_visual = torch.isin(ids, torch.tensor(visual))
    behind = torch.arange(len(ids)) > is_visual.nonzero().max()
    words = (behind & ~torch.isin(ids, outside)).nonzero().squeeze(1)
    return Asking(dict(made), sample, asker.kind(sample), words, asker.task.max_new_tokens)


class Removing:
    """A model that is asked with parts of the prompt taken away."""

    def __init__(self, loaded: Loaded) -> None:
        self._model, self._tokenizer = loaded.model, loaded.processor.tokenizer

    @torch.no_grad()
    def whole(self, asking: Asking) -> tuple[Tensor, Outcome]:
        """The reply [1, T] to the whole question, and what came of it."""
        reply = self._reply(asking, asking.inputs)
        return reply, Outcome(self._score(asking, reply), self._loss(asking.inputs, reply), 0.0)

    @torch.no_grad()
    def without(self, asking: Asking, own: Tensor, removal: Removal, seed: int) -> Outcome:
        """What comes of the question without some tokens.

        Args:
            own: [1, T] the reply to the whole question.
            seed: of what is drawn.
        """
        if removal.kind == TEXT:
            inputs, removed = self._less_text(asking, removal.share, seed)
            return Outcome(self._score(asking, self._reply(asking, inputs)), self._loss(inputs, own), removed)
        with vlmprune.prune(self._model, "random", keep=1.0 - removal.share, seed=seed) as session:
            score = self._score(asking, self._reply(asking, asking.inputs))
            loss = self._loss(asking.inputs, own)
            before, after = session.last.tokens[0]
        return Outcome(score, loss, 1.0 - after / before)

    @torch.no_grad()
    def words(self, asking: Asking) -> np.ndarray:
        """[words, D] the embeddings of the question's text."""
        table = adapter_for(self._model).inner.get_input_embeddings()
        return table(asking.inputs["input_ids"][0, asking.words.to(self._model.device)]).float().cpu().numpy()

    def _less_text(self, asking: Asking, share: float, seed: int) -> tuple[dict[str, Any], float]:
        """The inputs without a random share of the question's tokens, at least one."""
        count = max(1, round(share * len(asking.words)))
        draw = torch.Generator().manual_seed(seed)
        gone = asking.words[torch.randperm(len(asking.words), generator=draw)[:count]]
        length = asking.inputs["input_ids"].shape[1]
        left = torch.ones(length, dtype=torch.bool)
        left[gone] = False
        shorter = {
            name: value[:, left.to(value.device)] if _by_token(value, length) else value
            for name, value in asking.inputs.items()
        }
        return shorter, count / len(asking.words)

    def _reply(self, asking: Asking, inputs: dict[str, Any]) -> Tensor:
        settings = generation_kwargs(asking.length)
        ids = self._model.generate(**inputs, **settings, pad_token_id=self._tokenizer.pad_token_id)
        return ids[:, inputs["input_ids"].shape[1] :]

    def _score(self, asking: Asking, reply: Tensor) -> float:
        text = self._tokenizer.decode(reply[0], skip_special_tokens=True).strip()
        sample = asking.sample
        return score_reply(asking.kind, text, sample.answers, sample.options, sample.facts).score

    def _loss(self, inputs: dict[str, Any], reply: Tensor) -> float:
        """Mean cross-entropy of a reply behind a prompt; the reply's tokens are the last, and never pruned."""
        count = reply.shape[1]
        longer = dict(inputs)
        for name, value in inputs.items():
            if _by_token(value, inputs["input_ids"].shape[1]):
                fill = {"input_ids": reply, "attention_mask": torch.ones_like(reply)}
                tail = fill.get(name, torch.zeros_like(reply)).to(value.dtype)
                longer[name] = torch.cat([value, tail], 1)
        logits = self._model(**longer).logits[0, -count - 1 : -1].float()
        return float(torch.nn.functional.cross_entropy(logits, reply[0]))


def _by_token(value: Any, length: int) -> bool:
    """Whether an input has a value for each token of the prompt."""
    return isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == length and len(value) == 1


def seeds(count: int, seed: int) -> Sequence[int]:
    """A seed for each question."""
    return torch.randint(2**31, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
