"""Checks that run a method on a tiny model, and hold what it generates against what it must be."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.method import PixelMethod
from vlmprune.core.report import RunReport
from vlmprune.core.roles import merges_inside
from vlmprune.core.view import Grid
from vlmprune.runtime import oracle as oracles
from vlmprune.runtime.session import prune
from vlmprune.testing.check import Failed, Skipped, check, in_words
from vlmprune.testing.subject import KEEP, Run, Subject

TOLERANCE = 1e-3  # of the logits' spread; right and wrong are four orders of magnitude apart


def run_of(subject: Subject) -> Run:
    """The method's run; `Skipped` where there is none, which the check `runs` tells."""
    if subject.refused:
        raise Skipped(f"it cannot prune this family: {subject.refused}")
    if subject.run is None:
        raise Skipped("it does not run, as the check `runs` says")
    return subject.run


def compared(subject: Subject) -> None:
    """`Skipped` where logits of the model cannot be compared with those of another run."""
    if subject.ground.unjudged:
        raise Skipped(f"logits of this model cannot be compared: {subject.ground.unjudged}")


def differs(got: Tensor, due: Tensor) -> str:
    """The largest difference in words, empty where it is within the tolerance (not where it is NaN)."""
    error, limit = float((got - due).abs().max()), TOLERANCE * float(due.std())
    return "" if error <= limit else f"the logits differ by {error:.1e} (at most {limit:.1e})"


@check("the method prunes the family and the model generates with it")
def runs(subject: Subject) -> None:
    if subject.refused:
        raise Skipped(f"it cannot prune this family: {subject.refused}")
    if subject.run is None:
        assert subject.failure is not None
        raise Failed(f"expected {KEEP} of the tokens to be kept, but {in_words(subject.failure)} was raised")


def due_counts(subject: Subject, keep: float | int, report: RunReport) -> list[list[int]]:
    """By sample and image, the tokens that its `budget` says are left in the end."""
    return [
        [_left(subject, keep, *image) for image in zip(*row, strict=True)]
        for row in zip(subject.ground.slots, report.grids, report.videos, strict=True)
    ]


def _left(subject: Subject, keep: float | int, total: int, grid: Grid | None, video: bool) -> int:
    n = total
    for act in subject.plan(keep).acts:
        n = min(n, act.of(total, grid, video).budget(n, total))
    return n


@check("on a model each image keeps exactly what `budget` says, in the order of its slots")
def exact_on_model(subject: Subject) -> None:
    run = run_of(subject)
    method = subject.method
    due = due_counts(subject, KEEP, run.report)
    for row, ((before, after), wanted) in enumerate(zip(run.report.tokens, due, strict=True)):
        fits = after <= sum(wanted) if isinstance(method, PixelMethod) else after == sum(wanted)
        if after > before or (method.exact and method.budgeted and not merges_inside(method) and not fits):
            raise Failed(f"expected {sum(wanted)} of the {before} tokens of sample {row} to stay, but {after} do")
        if not subject.selects or any(run.report.merged):
            continue
        for image, kept in enumerate(run.report.kept[row]):
            if not bool((kept.diff() > 0).all()):
                raise Failed(f"expected the kept slots of image {image} of sample {row} in order, got {kept.tolist()}")


@check("a budget of one token leaves one token of each image, or what `budget` says is the least")
def one_token(subject: Subject) -> None:
    run_of(subject)
    if not subject.method.budgeted:
        raise Skipped("it takes no budget")
    try:
        report = subject.forward(subject.ground.inputs, keep=1).report
    except UserError as error:
        raise Skipped(f"it refuses such a budget: {error}") from error
    due = due_counts(subject, 1, report)
    left = [after for _, after in report.tokens]
    if subject.method.exact and subject.selects and left != [sum(row) for row in due]:
        raise Failed(f"expected {[sum(row) for row in due]} tokens to be left of the samples, but {left} are")


@check("keeping everything gives what the unpruned model gives, bit for bit")
def keep_all(subject: Subject) -> None:
    run_of(subject)
    if not subject.method.budgeted:
        raise Skipped("it takes no budget")
    whole = subject.forward(subject.ground.inputs, keep=1.0).logits
    with torch.no_grad():
        vanilla = subject.ground.model(**subject.ground.inputs).logits[:, -1:]
    if not torch.equal(whole, vanilla):
        raise Failed(f"expected the unpruned model's logits, but they differ by {float((whole - vanilla).abs().max())}")


@check("each sample alone, without padding or other images beside it, keeps the same and gives the same")
def alone(subject: Subject) -> None:
    run = run_of(subject)
    compared(subject)
    for row, inputs in enumerate(subject.ground.rows):
        single = subject.forward(inputs)
        for image, (kept, due) in enumerate(zip(single.report.kept[0], run.report.kept[row], strict=True)):
            if not torch.equal(kept, due):
                raise Failed(
                    f"expected image {image} of sample {row} to keep the same slots alone as in a batch, but it keeps "
                    f"{kept.tolist()} instead of {due.tolist()}"
                )
        if words := differs(single.logits, run.logits[row : row + 1, :1]):
            raise Failed(f"expected sample {row} to give the same alone as in a batch, but {words}")


@check("what is generated with a cache equals the oracle, or one forward without a cache where no oracle can judge")
def oracle(subject: Subject) -> None:
    run = run_of(subject)
    compared(subject)
    on, report = subject.ground, run.report
    makes = any(report.merged) or not subject.selects
    if makes or report.fused:
        steps = 1 if report.trimmed else run.tokens.shape[1]  # trimmed caches show less to what is decoded
        name, got, tokens = "a forward without a cache", run.logits[:, steps - 1], run.tokens[:, :steps]
        with prune(on.model, subject.recipe()):
            due = oracles.uncached(subject.adapter, on.inputs, tokens, run.positions)[:, -1]
    else:
        name, got, policies = "the oracle, which masks what was dropped", run.logits, subject.plan().policies()
        due = oracles.oracle(on.model, on.inputs, on.rows, run.tokens, report, policies, on.numbers)
    if words := differs(got, due):
        raise Failed(f"expected the logits of {name}, but {words}")


@check("on a model an image of odd shape, as a single row of slots, keeps its budget, and the logits are right")
def odd_shape_on_model(subject: Subject) -> None:
    run_of(subject)
    if not subject.ground.odd:
        raise Skipped("pictures of odd shape reach its encoder in the shape of others")
    for ground in subject.ground.odd:
        own = Subject(subject.method, ground)
        if own.refused:
            raise Skipped(f"it cannot prune {ground.name}: {own.refused}")
        try:
            for one in (runs, exact_on_model, oracle):
                one(own)
        except Failed as error:
            raise Failed(f"{error} (with {ground.name})") from error


@check("in half precision the budget is the same and no logit is NaN")
def half_precision(subject: Subject) -> None:
    run = run_of(subject)
    if subject.ground.model.dtype != torch.float32:
        raise Skipped("the model is in half precision already, in which all checks run on it")
    model = copy.deepcopy(subject.ground.model).to(torch.bfloat16)
    inputs = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
        for name, value in subject.ground.inputs.items()
    }
    half = subject.forward(inputs, model=model)
    if not bool(half.logits.isfinite().all()):
        raise Failed("expected finite logits in bfloat16, but some are not")
    if subject.method.exact and half.report.tokens != run.report.tokens:
        raise Failed(f"expected {run.report.tokens} tokens before and after in bfloat16, but got {half.report.tokens}")
