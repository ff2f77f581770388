"""`vlmprune bench --engine lmms`: tasks of lmms-eval on a model under every method, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmprune.bench.load import load_model
from vlmprune.bench.plan import Plan, Variant
from vlmprune.bench.store import VANILLA
from vlmprune.core.errors import UserError
from vlmprune.core.extras import load_package


@dataclass(frozen=True)
class Scored:
    """A model's figures under a method, as lmms-eval gives them.

    Attributes:
        figures: by (task, metric).
    """

    model: str
    variant: Variant
    figures: Mapping[tuple[str, str], float]


def run_lmms(plan: Plan, tasks: Sequence[str], folder: str | None, limit: int | None) -> list[Scored]:
    """Have lmms-eval score vanilla and every method of a plan.

    Args:
        plan: models, methods, budgets, batch size, positions and seeds; its tasks are not read.
        tasks: names of lmms-eval's.
        folder: of task files of the user's own; None for lmms-eval's alone.
        limit: documents a task; None for all.

    Raises:
        UserError: lmms-eval is not installed or has no such task, or a method cannot act on a model.
    """
    load_package("lmms_eval", "--engine lmms")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from vlmprune.engines.lmms import PrunedModel

    plan.check()
    manager = TaskManager(include_path=folder)
    for name in tasks:
        if name not in manager.all_tasks:
            raise UserError(f"lmms-eval has no task {name!r}: `lmms_eval tasks list` names all.")
    scored = []
    for name in plan.models:
        loaded = load_model(name, plan.device, plan.text_tower)
        made = []
        for variant in plan.variants():
            asked: dict[str, Any] = {"positions": plan.positions, "seed": variant.seed or 0, "loaded": loaded}
            made.append((variant, PrunedModel(name, variant.recipe, **asked, batch_size=plan.batch_size)))
        for variant, model in made:
            results = simple_evaluate(
                model=model, tasks=list(tasks), task_manager=manager, limit=limit, batch_size=plan.batch_size,
                bootstrap_iters=0, log_samples=False, verbosity="ERROR",
            )  # fmt: skip
            scored.append(Scored(name, variant, figures_of(results["results"])))
    return scored


def figures_of(results: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """The figures of lmms-eval's results, without standard errors and what is not a number."""
    return {
        (task, metric.partition(",")[0]): float(value)
        for task, values in results.items()
        for metric, value in values.items()
        if isinstance(value, int | float) and "," in metric and "_stderr" not in metric
    }


def lines(scored: Sequence[Scored]) -> list[str]:
    """A table as Markdown, a row a model and method."""
    columns = list(dict.fromkeys(column for one in scored for column in one.figures))
    heads = ["model", "method", "keep", *(" ".join(column) for column in columns)]
    rows = [heads, ["---"] * len(heads)]
    for one in scored:
        keep = "" if one.variant.keep is None or one.variant.text == VANILLA else str(one.variant.keep)
        seed = f", seed {one.variant.seed}" if one.variant.seed else ""
        cells = [f"{one.figures[column]:.4g}" if column in one.figures else "-" for column in columns]
        rows.append([one.model, one.variant.method + seed, keep, *cells])
    return [f"| {' | '.join(row)} |" for row in rows]
