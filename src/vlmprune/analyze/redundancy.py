"""How redundant visual tokens are (HiPrune, figure 1): similarity to neighbours, and what removing some costs.

A token's similarity is its mean cosine with the ten tokens next to it in the sequence, five on each side (the paper
gives the sum of ten). Then a random share of the visual tokens, or of the question's, is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprune.analyze.look import DARK, MIDDLE, interval, legend, plain
from vlmprune.analyze.removal import TEXT, VISUAL, Asking, Outcome, Removal, Removing, askings, seeds
from vlmprune.analyze.study import Asked, Finding, Sheet
from vlmprune.report.plots import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEIGHBOURS = 10
REMOVALS = (
    *(Removal(VISUAL, share) for share in (0.5, 0.75, 0.9)),
    *(Removal(TEXT, share) for share in (0.05, 0.25, 0.5)),
)


def neighbour_similarity(rows: np.ndarray) -> np.ndarray:
    """[n] mean cosine of each row [n, D] with the five before and the five behind it, as far as they are there."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    total, count = np.zeros(len(rows)), np.zeros(len(rows))
    for step in range(1, min(NEIGHBOURS // 2, len(rows) - 1) + 1):
        cosine = (unit[step:] * unit[:-step]).sum(1)
        total[step:] += cosine
        total[: len(rows) - step] += cosine
        count[step:] += 1
        count[: len(rows) - step] += 1
    return total / np.maximum(count, 1)


def redundancy(asked: Asked) -> Finding:
    """The similarity of neighbours and, for a vision-language model, the cost of removing tokens."""
    readings = asked.readings()
    visual = np.concatenate([neighbour_similarity(reading.features) for reading in readings])
    if not asked.subject.whole:
        sheets = {"redundancy-similarity": _similarities({VISUAL: visual})}
        text = [_similarity_text(visual, None), "An encoder alone answers no questions, so nothing was removed."]
        return Finding("Redundancy of visual tokens", text, {"redundancy": _figure({VISUAL: visual}, None)}, sheets)
    settings = {"questions": asked.limit, "seed": asked.seed, "removals": REMOVALS}
    found = asked.once("redundancy", settings, lambda: _measure(asked))
    both = {VISUAL: visual, TEXT: np.array(found["text_similarity"])}
    outcomes = [[Outcome(*one) for one in of_removal] for of_removal in found["outcomes"]]
    sheets = {"redundancy": _sheet(outcomes), "redundancy-similarity": _similarities(both)}
    text = [_similarity_text(visual, both[TEXT]), *_removal_text(outcomes, asked.seed)]
    return Finding("Redundancy of visual tokens", text, {"redundancy": _figure(both, outcomes)}, sheets)


def _measure(asked: Asked) -> dict[str, Any]:
    """Every question whole and with every removal: outcomes by removal, the whole question first."""
    loaded = asked.subject.loaded
    removing = Removing(loaded)
    outcomes: list[list[Outcome]] = [[] for _ in (None, *REMOVALS)]
    similar: list[float] = []
    drawn = seeds(asked.limit, asked.seed)
    for number, (asking, seed) in enumerate(zip(askings(loaded, asked.limit), drawn, strict=True)):
        asked.tell("asking questions", number, asked.limit)
        settings = [asking.sample.digest().hex(), seed, REMOVALS]
        found = asked.once("question", settings, partial(_ask, removing, asking, seed))
        for of_removal, outcome in zip(outcomes, found["outcomes"], strict=True):
            of_removal.append(outcome)
        similar += found["text_similarity"]
    asked.tell("asking questions", asked.limit, asked.limit)
    return {"outcomes": outcomes, "text_similarity": similar}


def _ask(removing: Removing, asking: Asking, seed: int) -> dict[str, Any]:
    """One question, whole and with every removal."""
    own, whole = removing.whole(asking)
    outcomes = [whole, *(removing.without(asking, own, removal, seed) for removal in REMOVALS)]
    return {"outcomes": outcomes, "text_similarity": neighbour_similarity(removing.words(asking)).tolist()}


def _sheet(outcomes: Sequence[Sequence[Outcome]]) -> Sheet:
    rows: list[list[object]] = []
    for removal, of_removal in zip((Removal("none", 0.0), *REMOVALS), outcomes, strict=True):
        accuracy = interval([100 * one.score for one in of_removal])
        loss = interval([one.loss for one in of_removal])
        removed = float(np.mean([one.removed for one in of_removal]))
        numbers = (removed, *accuracy, *loss)
        rows.append([removal.kind, removal.share, *(round(number, 4) for number in numbers), len(of_removal)])
    head = ["removed", "share", "share_removed", "accuracy", "accuracy_low", "accuracy_high", "loss", "loss_low"]
    return Sheet([*head, "loss_high", "questions"], rows)


def _similarities(found: dict[str, np.ndarray]) -> Sheet:
    rows = [
        [kind, len(values), *(round(float(np.percentile(values, at)), 4) for at in (5, 25, 50, 75, 95))]
        for kind, values in found.items()
    ]
    return Sheet(["tokens", "count", "percentile_5", "percentile_25", "median", "percentile_75", "percentile_95"], rows)


def _figure(similar: dict[str, np.ndarray], outcomes: Sequence[Sequence[Outcome]] | None) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6 if outcomes else 5.2, 3.7), layout="constrained")
    plots = figure.subplots(1, 3 if outcomes else 1, squeeze=False)[0]
    low = min(float(values.min()) for values in similar.values())
    bins = np.linspace(min(low, 0.0), 1, 31)
    for (kind, values), color, dash in zip(similar.items(), (DARK, MIDDLE), ("-", "--"), strict=False):
        weights = np.full(len(values), 100 / len(values))
        plots[0].hist(values, bins, weights=weights, histtype="step", color=color, linestyle=dash, linewidth=1.5,
                      label=f"{kind} tokens")  # fmt: skip
    plain(plots[0], "mean cosine with 10 neighbours", "share of tokens, percent")
    legend(plots[0])
    if outcomes:
        _removed(plots[1], outcomes, "accuracy, percent", lambda one: 100 * one.score)
        _removed(plots[2], outcomes, "loss of own reply, nats per token", lambda one: one.loss)
        plots[1].set_ylim(0, 105)
    return figure


def _removed(axes: Axes, outcomes: Sequence[Sequence[Outcome]], name: str, value: Any) -> None:
    whole = interval([value(one) for one in outcomes[0]])[0]
    axes.axhline(whole, color=FAINT, linewidth=1, linestyle=(0, (1, 3)), label="nothing removed")
    for kind, color, marker, dash in ((VISUAL, DARK, "o", "-"), (TEXT, MIDDLE, "s", "--")):
        places = [place for place, removal in enumerate(REMOVALS, 1) if removal.kind == kind]
        across = [100 * float(np.mean([one.removed for one in outcomes[place]])) for place in places]
        mean, low, high = np.array([interval([value(one) for one in outcomes[place]]) for place in places]).T
        axes.plot(across, mean, color=color, marker=marker, linestyle=dash, markersize=4, label=f"{kind} removed")
        axes.vlines(across, low, high, color=color, linewidth=1, alpha=0.5)
    plain(axes, "tokens removed, percent", name)
    axes.set_xlim(0, 100)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1, frameon=False, fontsize=8, labelcolor=INK)


def _similarity_text(visual: np.ndarray, text: np.ndarray | None) -> str:
    said = f"A visual token has a median cosine of {np.median(visual):.2f} with its {NEIGHBOURS} neighbours"
    return said + (f", a token of the question {np.median(text):.2f}." if text is not None else ".")


def _removal_text(outcomes: Sequence[Sequence[Outcome]], seed: int) -> list[str]:
    def change(removal: Removal) -> str:
        of_removal = outcomes[1 + REMOVALS.index(removal)]
        gain, low, high = interval([100 * (new.score - old.score) for new, old in zip(of_removal, outcomes[0])], seed)
        removed = 100 * float(np.mean([one.removed for one in of_removal]))
        return (
            f"Without {removed:.0f} % of the {removal.kind} tokens the accuracy changes by {gain:+.1f} points (95 % "
            f"interval {low:+.1f} to {high:+.1f}), the loss of the model's own reply from "
            f"{np.mean([one.loss for one in outcomes[0]]):.2f} to {np.mean([one.loss for one in of_removal]):.2f}."
        )

    whole = 100 * float(np.mean([one.score for one in outcomes[0]]))
    return [
        f"The whole model answers {whole:.0f} % of {len(outcomes[0])} questions about generated scenes correctly.",
        change(Removal(VISUAL, 0.5)),
        change(Removal(TEXT, 0.05)),
    ]
