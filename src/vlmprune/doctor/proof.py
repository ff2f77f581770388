"""The proofs that pruning is exact on a model: each generates with a cache, as users do, and compares the result with
a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

import vlmprune
from vlmprune.doctor.methods import Wrong, in_words
from vlmprune.doctor.prompts import TOKENS, Asked, Prompts, converse, narrower_window, sliding_window
from vlmprune.doctor.reference import difference, no_oracle, oracle, oracle_name
from vlmprune.models.base import Adapter
from vlmprune.testing.adapter_subject import layer_after_attention

POSITIONS = ("original", "compact")


@dataclass(frozen=True)
class Case:
    """A pruned generation that the oracle judges.

    Attributes:
        spec: the recipe.
        positions: the policy.
        prompts: what is asked.
        turns: 2 for the second turn on the first one's cache.
        window: tokens of the sliding window, where the model's own is longer than the prompts.
    """

    spec: str
    positions: str
    prompts: Prompts
    turns: int = 1
    window: int | None = None

    @property
    def name(self) -> str:
        turn = ", a second turn" if self.turns == 2 else ""
        window = f", a window of {self.window} tokens" if self.window else ""
        return f"{self.spec}, {self.positions} positions, {self.prompts.name}{turn}{window}"

    def judge(self, adapter: Adapter) -> str:
        """What was measured.

        Raises:
            Wrong: the proof fails.
        """
        with sliding_window(adapter, self.window):
            with vlmprune.prune(adapter.model, self.spec, positions=self.positions) as session:
                talk = converse(adapter, self.prompts, self.turns)
                report = session.last
            policies = vlmprune.recipe(self.spec).on(adapter.info).policies(self.positions)
            expected = oracle(adapter, self.prompts, talk.said, report, policies)
        if not all(after < before for before, after in report.tokens):
            raise Wrong(f"nothing was pruned: {report.tokens} tokens before and after")
        words, equal = difference(talk.turns[-1].logits, expected[:, -TOKENS:])
        if not equal:
            raise Wrong(f"DIFFERS from the {oracle_name(adapter)}: {words}")
        return f"equals the {oracle_name(adapter)}: {words}"


def proof_recipes(adapter: Adapter, keep: float = 0.5) -> list[str]:
    """A cut before the language model and, where the decoder has a layer to read, one inside it, and both."""
    before, layer = f"divprune:{keep}", layer_after_attention(adapter)
    if layer is None:
        return [before]
    inside = f"fastv@{layer}:{keep}"
    return [before, inside, f"{before} > {inside}"]


def cases_of(adapter: Adapter, asked: list[Asked]) -> Iterator[Case]:
    """Every recipe under both policies, for everything that the unpruned model can answer."""
    able = [(one.prompts, turns) for one in asked for turns in (1, 2) if len(one.unpruned) >= turns]
    second = [(prompts, turns) for prompts, turns in able if turns == 2][-1:]  # of the batch, where there is one
    for spec in proof_recipes(adapter):
        for positions in POSITIONS:
            for prompts, turns in [*((prompts, turns) for prompts, turns in able if turns == 1), *second]:
                yield Case(spec, positions, prompts, turns)
    for prompts, turns in second or able[-1:]:
        if (window := narrower_window(adapter, prompts)) is not None:
            for positions in POSITIONS:
                yield Case(proof_recipes(adapter)[-1], positions, prompts, turns, window)


def prove(adapter: Adapter, asked: list[Asked]) -> tuple[list[str], bool]:
    """A line for each proof, and whether all of them hold. A proof that raises an error does not hold.

    If the unpruned model cannot answer some prompts, a line says that these are not proven. It must answer one prompt.
    """
    lines = [f"proof on this model ({TOKENS} tokens with a cache, {TOKENS} more in a second turn after a question):"]
    proven = bool(asked[0].unpruned)

    def note(name: str, judge: Callable[[], str]) -> None:
        nonlocal proven
        try:
            lines.append(f"  {name}: {judge()}")
        except Exception as error:  # whatever the runtime or the model raises, the proof fails
            lines.append(f"  {name}: FAILS: {in_words(error)}")
            proven = False

    for one in asked:
        if one.unpruned:
            turns = ", and a second turn" if len(one.unpruned) == 2 else ""
            note(f"keep 1.0, {one.prompts.name}{turns}", partial(_identity, adapter, one))
        if one.failure is not None:
            turn = ", a second turn" if one.unpruned else ""
            lines.append(f"  {one.prompts.name}{turn}: no proof, the unpruned model fails: {in_words(one.failure)}")
    if reason := no_oracle(adapter):
        lines.append(f"  {proof_recipes(adapter)[-1]} is not compared with an oracle: {reason}")
        return lines, proven
    for case in cases_of(adapter, asked):
        note(case.name, partial(case.judge, adapter))
    return lines, proven


def _identity(adapter: Adapter, asked: Asked) -> str:
    """Keeping everything against the unpruned model."""
    with vlmprune.prune(adapter.model, proof_recipes(adapter, keep=1.0)[-1]):
        whole = converse(adapter, asked.prompts, len(asked.unpruned)).turns
    for vanilla, own in zip(asked.unpruned, whole, strict=True):
        if not torch.equal(vanilla.tokens, own.tokens) or not torch.equal(vanilla.logits, own.logits):
            error = float((vanilla.logits - own.logits).abs().max())
            raise Wrong(f"DIFFERS from vanilla: largest difference {error:.1e} (at most 0)")
    return "equals vanilla bit for bit, prefill and decoding"
