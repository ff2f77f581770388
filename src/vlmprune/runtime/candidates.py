"""Candidates of assisted decoding: held back from a prefill, and refused where they need what pruning removes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.runtime.attributes import Attachments, put
from vlmprune.runtime.cache import state_of


def watch_candidates(attached: Attachments, model: Any, hold_back: bool) -> None:
    """Stand between `model.generate` and every candidate generator it makes (an assistant, prompt lookup, ...).

    Args:
        hold_back: whether the prefill takes no candidates along. Where caches are cut after it, candidates in one
            forward with the prompt would see all that the prompt sees, and their logits would be others than those of
            decoding step by step.
    """
    original = model._get_candidate_generator

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        generator = original(*args, **kwargs)
        if generator.requires_model_outputs:
            _refuse_pruned(generator)
        elif hold_back:
            HeldBack(generator)
        return generator

    attached.put(model, "_get_candidate_generator", wrapper)


def _refuse_pruned(generator: Any) -> None:
    """Those that read hidden states (multi-token prediction, DFlash) need one for each token of the prompt."""
    original = generator.get_candidates

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        outputs = kwargs.get("model_outputs")
        if outputs is not None and any(state_of(value) is not None for value in outputs.values()):
            raise UserError(
                f"{type(generator).__name__} drafts from the hidden state of every token of the prompt, and a pruned "
                "model has fewer: decode with prompt_lookup_num_tokens or an assistant_model instead."
            )
        return original(*args, **kwargs)

    put(generator, "get_candidates", wrapper)


class HeldBack:
    """Offers a generator's first draft one step late: after the prefill, if the prefill wrote the token it begins with.

    The generator cannot tell. It is asked and told the outcome as often, of the same tokens and with as many scores, as
    if the draft had been checked in one forward with the prompt.
    """

    def __init__(self, generator: Any) -> None:
        self.draft: Tensor | None = None  # [1, prompt + candidates]
        self.logits: Tensor | None = None  # [1, candidates, V]
        self.scores: Tensor | None = None  # [1, 1, V] of the token that the prefill wrote, once that began the draft
        self._ask, self._tell = generator.get_candidates, generator.update_candidate_strategy
        self._undo = [
            put(generator, "get_candidates", self.get_candidates),
            put(generator, "update_candidate_strategy", self.update_candidate_strategy),
        ]

    def get_candidates(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """No candidates at first, and then what is left of those."""
        if self.draft is not None:
            left = self.draft.shape[1] > input_ids.shape[1]
            return self.draft, self.logits[:, 1:] if left and self.logits is not None else None
        self.draft, self.logits = self._ask(input_ids)
        if self.draft.shape[1] == input_ids.shape[1]:
            self._release()
        return input_ids, None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Tell the generator how its draft did as soon as that is known."""
        assert self.draft is not None
        if self.scores is not None:
            self._release()
            self._tell(input_ids, torch.cat([self.scores, scores], dim=1), num_matches + 1)
        elif torch.equal(self.draft[:, : input_ids.shape[1]], input_ids.to(self.draft.device)):
            self.scores = scores
        else:  # scores behind a wrong candidate say nothing: the first stands for them
            self._release()
            candidates = self.draft.shape[1] - input_ids.shape[1] + 1
            self._tell(input_ids, scores.expand(-1, candidates + 1, -1), 0)

    def _release(self) -> None:
        for undo in self._undo:
            undo()
