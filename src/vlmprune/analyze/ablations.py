"""What each option of HiPrune and Hi-Lo Prune is worth: `vlmprune bench` on the generated tasks, one option changed.

Every setting is compared with the method's defaults on the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vlmprune.analyze.look import DARK, MIDDLE, plain
from vlmprune.analyze.settings import DEFAULT, HILO, HIPRUNE, KEEPS, Setting, settings_for
from vlmprune.analyze.study import Asked, Finding, Sheet
from vlmprune.bench.compare import tables_of
from vlmprune.bench.plan import Plan, variants_of
from vlmprune.bench.runner import Progress, run_bench
from vlmprune.bench.stats import Estimate, mean_difference
from vlmprune.bench.store import load_results
from vlmprune.bench.table import Row
from vlmprune.models import adapter_for
from vlmprune.report.plots import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {HIPRUNE: "HiPrune", HILO: "Hi-Lo Prune"}


class Effect(NamedTuple):
    """A setting's mean accuracy over the tasks, percent, and its difference to the method's defaults, in points."""

    setting: Setting
    accuracy: float
    change: Estimate


def ablations(asked: Asked) -> Finding:
    """One option changed at a time, on all generated tasks."""
    settings = settings_for(adapter_for(asked.subject.loaded.model).info)
    recipes = tuple(setting.recipe for setting in settings)
    plan = Plan(models=(asked.subject.name,), methods=recipes, keeps=(KEEPS[HIPRUNE],), limit=asked.limit)
    texts = [variants_of(recipe, ())[0].text for recipe in recipes]  # as results name them
    folder = asked.folder / "bench"

    def tell(at: Progress) -> None:
        asked.tell("benchmark steps", at.done, at.due)

    asked.subject.begin()
    run_bench(plan, folder, tell)
    [table] = tables_of(load_results(folder))
    rows = {row.cells[table.tasks[0]].result.recipe: row for row in table.rows}
    found = [(setting, rows[text]) for setting, text in zip(settings, texts, strict=True)]
    defaults = {setting.method: row for setting, row in found if setting.knob == DEFAULT}
    effects = [_effect(setting, row, defaults[setting.method], asked.seed) for setting, row in found]
    head = ["method", "option", "value", "keep", "accuracy", "change", "low", "high", "questions"]
    count = sum(cell.n for cell in found[0][1].cells.values())
    sheet = Sheet(head, [_line(effect, count) for effect in effects])
    vanilla = next(row for row in table.rows if row.is_vanilla)
    text = _text(effects, _mean(vanilla), count, len(table.tasks))
    return Finding("Ablations", text, {"ablations": _figure(effects)}, {"ablations": sheet})


def _effect(setting: Setting, row: Row, default: Row, seed: int) -> Effect:
    tasks = list(default.cells)
    own, base = ([of.cells[task].counted for task in tasks] for of in (row, default))
    change = Estimate(0.0, 0.0, 0.0) if setting.knob == DEFAULT else mean_difference(own, base, seed=seed)
    return Effect(setting, _mean(row), change)


def _mean(row: Row) -> float:
    return sum(cell.value.value for cell in row.cells.values()) / len(row.cells)


def _line(effect: Effect, count: int) -> list[object]:
    setting, numbers = effect.setting, [round(number, 3) for number in (effect.accuracy, *effect.change)]
    return [setting.method, setting.knob, setting.value, KEEPS[setting.method], *numbers, count]


def _figure(effects: Sequence[Effect]) -> Figure:
    from matplotlib.figure import Figure

    groups = [[effect for effect in effects if effect.setting.method == method] for method in (HIPRUNE, HILO)]
    figure = Figure(figsize=(9.6, 0.9 + 0.22 * max(map(len, groups))), layout="constrained")
    for axes, group, color in zip(figure.subplots(1, 2, sharex=True), groups, (DARK, MIDDLE), strict=True):
        _panel(axes, group, color)
    return figure


def _panel(axes: Axes, group: Sequence[Effect], color: str) -> None:
    changed = [effect for effect in group if effect.setting.knob != DEFAULT]
    places = range(len(changed))
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.hlines(places, [one.change.low for one in changed], [one.change.high for one in changed], color=color)
    axes.plot([one.change.value for one in changed], places, "o", color=color, markersize=4)
    method = group[0].setting.method
    plain(axes, "change of mean accuracy, points", "")
    axes.set_yticks(list(places), [f"{one.setting.knob}: {one.setting.value}" for one in changed], color=INK)
    axes.invert_yaxis()
    axes.set_title(f"{_NAMES[method]}, keep {KEEPS[method]}", fontsize=9, color=INK, loc="left")


def _text(effects: Sequence[Effect], vanilla: float, count: int, tasks: int) -> list[str]:
    said = [f"{count} questions of {tasks} generated tasks; the unpruned model answers {vanilla:.1f} % correctly."]
    for method, name in _NAMES.items():
        group = [effect for effect in effects if effect.setting.method == method]
        sure = [one for one in group if one.setting.knob != DEFAULT and (one.change.low > 0 or one.change.high < 0)]
        told = ", ".join(f"{one.setting.knob} {one.setting.value} {one.change.value:+.1f}" for one in sure)
        said.append(
            f"{name} with its defaults answers {group[0].accuracy:.1f} % at {100 * KEEPS[method]:.1f} % of the tokens. "
            f"Of {len(group) - 1} changes, {len(sure)} differ from that by more than their 95 % interval"
            + (f" (in points: {told})" if told else "")
            + "; by chance alone about one in twenty would."
        )
    return said
