"""Which methods work on a model: the model generates with each, and the logits are compared with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.core.roles import changes_encoding
from vlmprune.doctor.prompts import Prompts, generate
from vlmprune.doctor.reference import difference, no_comparison, no_oracle, oracle
from vlmprune.models.base import Adapter
from vlmprune.runtime.expected import Unexpected
from vlmprune.runtime.oracle import is_recurrent, uncached
from vlmprune.testing.adapter_subject import layer_after_attention

KEEP = 0.5
TOKENS = 4  # that each method generates
WORKS, REFUSED, BREAKS = "works", "refused", "breaks"


class Wrong(Exception):
    """What was generated differs from the reference."""


@dataclass(frozen=True)
class Tried:
    """What became of a method.

    Attributes:
        spec: the method, with its layer where it was not its own.
        status: one of `WORKS`, `REFUSED`, `BREAKS`.
        says: tokens before and after and what it reads, or the reason.
    """

    spec: str
    status: str
    says: str


def try_methods(adapter: Adapter, prompts: Prompts) -> list[Tried]:
    """What became of each method, in the order of their names; of one that needs another layer, each layer tried."""
    tried = []
    layer = layer_after_attention(adapter)
    for name in sorted(vlmprune.METHODS):
        wanted = [name]
        if is_recurrent(adapter.model) and _has_layer(name) and layer:
            wanted.append(f"{name}@{layer}")  # its own layer may be recurrent and have nothing to read
        for spec in wanted:
            tried.append(_try(adapter, prompts, spec))
            if tried[-1].status != REFUSED:
                break
    return tried


def _try(adapter: Adapter, prompts: Prompts, spec: str) -> Tried:
    try:
        return Tried(spec, WORKS, _run(adapter, prompts, spec))
    except Unexpected as error:
        return Tried(spec, BREAKS, str(error))
    except UserError as error:
        return Tried(spec, REFUSED, str(error))
    except Exception as error:  # a method of a third party may do anything
        return Tried(spec, BREAKS, in_words(error))


def describe_methods(adapter: Adapter, prompts: Prompts, tried: Sequence[Tried]) -> list[str]:
    """A line for each method that runs, and one for each reason why others cannot."""
    what = f"keep {KEEP}, {prompts.name}, {TOKENS} tokens generated with a cache"
    reason = no_comparison(adapter)
    compared = f"not compared with a run without one: {reason}" if reason else "compared with a run without one"
    words = {WORKS: "works", BREAKS: "BREAKS"}
    lines = [f"  {one.spec:12} {words[one.status]}: {one.says}" for one in tried if one.status != REFUSED]
    refused: dict[str, list[str]] = {}
    for one in tried:
        if one.status == REFUSED:
            refused.setdefault(one.says, []).append(one.spec)
    lines += [f"  {', '.join(names):12} no: {why}" for why, names in refused.items()]
    return [f"methods ({what} and {compared}):", *lines]


def _has_layer(name: str) -> bool:
    try:
        return "layer" in vlmprune.METHODS[name].__dataclass_fields__
    except UserError:  # of a package that is broken, which running it tells
        return False


def _run(adapter: Adapter, prompts: Prompts, spec: str) -> str:
    """Generate with a method, and compare.

    Raises:
        UserError: the method cannot prune this model.
        Wrong: it did not generate what it has to.
    """
    with vlmprune.prune(adapter.model, spec, keep=KEEP) as session:
        try:
            answer = generate(adapter, prompts.inputs, TOKENS)
            report, expected = session.last, None
            drops = _only_drops(adapter, spec, report)
            if no_comparison(adapter) is None and not drops:
                expected = uncached(adapter, prompts.inputs, answer.tokens, answer.positions)
        except UserError as error:
            # it did prune, or met something unexpected: that is not a refusal
            if session.last.tokens or isinstance(error, Unexpected):
                raise Wrong(in_words(error)) from error
            raise
    if drops:
        policies = vlmprune.recipe(spec, KEEP).on(adapter.info).policies()
        expected = oracle(adapter, prompts, answer.tokens, report, policies)
    if expected is not None:
        same = 1 if report.trimmed and not drops else TOKENS  # trimmed caches show less to what is decoded
        words, equal = difference(answer.logits[:, :same], expected[:, :same])
        if not equal:
            raise Wrong(f"what it generates differs from a run without a cache: {words}")
    before, after = report.tokens[0]
    read = ", ".join(f"{signal.split('.')[1]} of layer {layer}" for signal, layer in report.layers.items())
    return f"{before} -> {after} tokens" + (f"; reads {read}" if read else "")


def _only_drops(adapter: Adapter, spec: str, report: RunReport) -> bool:
    """Whether the oracle can say what a method must generate: it makes no tokens and edits no attention."""
    makes = any(report.merged) or any(changes_encoding(stage.method) for stage in vlmprune.recipe(spec, KEEP).stages)
    return not makes and not report.fused and no_oracle(adapter) is None


def in_words(error: Exception) -> str:
    """An error in one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return first if isinstance(error, Wrong) else f"{type(error).__name__}: {first}"
