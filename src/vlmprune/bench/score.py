"""From a raw answer to a score, and from scores to a task's metrics. No model is needed, so records can be re-scored.

A metric works on per-unit counts: a unit is what was drawn independently (a question, or the two questions of a
pair), its row holds a few counts, and the metric is a function of the summed rows. Resampling rows for a bootstrap
is then one matrix product (`bench.stats`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from vlmprune.assets.questions import NUMBERS, normalise_answer

KINDS = ("yesno", "choice", "number", "words")


class Verdict(NamedTuple):
    """The answer found in a reply (None when there is none of the asked kind), and 1.0 or 0.0."""

    extracted: str | None
    score: float


class Scored(Protocol):
    """What a metric reads from a record."""

    @property
    def group(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def answers(self) -> tuple[str, ...]: ...
    @property
    def extracted(self) -> str | None: ...
    @property
    def score(self) -> float: ...


def judge(kind: str, reply: str, answers: Sequence[str], options: Sequence[str] = ()) -> Verdict:
    """Score a reply to a question of `kind`.

    Args:
        kind: "yesno", "choice" (an option's letter), "number", or "words" (exact match after normalising).
        reply: what the model said.
        answers: the right answers; for "choice" the marker of the right option, "(b)".
        options: texts of the options in order, for "choice".
    """
    extracted = _EXTRACTORS[kind](reply, options)
    if extracted is None:
        return Verdict(None, 0.0)
    return Verdict(extracted, float(extracted in {normalise_answer(answer) for answer in answers}))


def extract_yes_no(reply: str, options: Sequence[str] = ()) -> str | None:
    """ "yes" or "no" when exactly one of the two words is in the reply."""
    found = {"yes", "no"} & set(re.findall(r"[a-z]+", reply.lower()))
    return found.pop() if len(found) == 1 else None


def extract_choice(reply: str, options: Sequence[str]) -> str | None:
    """The marker "(a)" of the chosen option.

    Letters in brackets count first, then letters standing alone; "a" in a sentence is an article, so alone it counts
    only as the last word or before a sign ("A. red"). Without a letter, the one option named in the reply is it.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"[: len(options)]
    lowered = reply.lower()
    chosen = {letter for letter in letters if f"({letter})" in lowered}
    if not chosen:
        words = re.findall(r"[a-z]+", lowered)
        chosen = {letter for letter in letters[1:] if letter in words}
        if words[-1:] == ["a"] or re.match(r"\s*a\s*[.):]", lowered):
            chosen |= {"a"} & set(letters)
    if chosen:
        return f"({chosen.pop()})" if len(chosen) == 1 else None
    named = [k for k, option in enumerate(options) if re.search(rf"\b{re.escape(option.lower())}\b", lowered)]
    return f"({letters[named[0]]})" if len(named) == 1 else None


def extract_number(reply: str, options: Sequence[str] = ()) -> str | None:
    """The one number in the reply, as a word up to six ("three") and in digits, apart, beyond ("1 2")."""
    words = dict(zip(NUMBERS, range(len(NUMBERS)), strict=True))
    tokens = re.findall(r"\d+|[a-z]+", reply.lower())
    found = {int(token) if token.isdigit() else words[token] for token in tokens if token.isdigit() or token in words}
    if len(found) != 1:
        return None
    value = found.pop()
    return NUMBERS[value] if value < len(NUMBERS) else " ".join(str(value))


def extract_words(reply: str, options: Sequence[str] = ()) -> str | None:
    """The reply in lower-case words with digits apart and no stop at the end; None when it is empty."""
    return normalise_answer(reply) or None


_EXTRACTORS: dict[str, Callable[[str, Sequence[str]], str | None]] = {
    "yesno": extract_yes_no,
    "choice": extract_choice,
    "number": extract_number,
    "words": extract_words,
}


@dataclass(frozen=True)
class Metric:
    """A task's primary metric, in percent, and what else is reported beside it.

    Attributes:
        name: as shown in tables.
        counts: records to an array [units, columns] of counts.
        value: sums of the counts [..., columns] to the metric [...], NaN where it is undefined.
        details: sums [columns] to further figures by name.
    """

    name: str
    counts: Callable[[Sequence[Scored]], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]
    details: Callable[[np.ndarray], dict[str, float]]


def unparsed_share(records: Sequence[Scored]) -> float:
    """Share of replies, in percent, in which no answer of the asked kind was found."""
    return 100.0 * sum(record.extracted is None for record in records) / max(1, len(records))


def accuracy_by_category(records: Sequence[Scored]) -> dict[str, float]:
    """Plain accuracy of each category, in percent."""
    names = dict.fromkeys(record.category for record in records)
    return {
        name: 100.0 * float(np.mean([record.score for record in records if record.category == name])) for name in names
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, 100.0 * part / np.where(whole > 0, whole, 1), np.nan)


def _accuracy_counts(records: Sequence[Scored]) -> np.ndarray:
    return np.array([(record.score, 1.0) for record in records], float).reshape(-1, 2)


ACCURACY = Metric("accuracy", _accuracy_counts, lambda sums: _ratio(sums[..., 0], sums[..., 1]), lambda sums: {})


def _pope_counts(records: Sequence[Scored]) -> np.ndarray:
    """Columns: true positives, false positives, false negatives, right answers, said yes, questions.

    A reply that is neither yes nor no is wrong, and to a question whose answer is yes it is a false negative too.
    """
    rows = []
    for record in records:
        said, truth = record.extracted == "yes", record.answers[0] == "yes"
        rows.append((said and truth, said and not truth, not said and truth, record.score, said, 1))
    return np.array(rows, float).reshape(-1, 6)


def _f1(sums: np.ndarray) -> np.ndarray:
    return _ratio(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def _pope_details(sums: np.ndarray) -> dict[str, float]:
    true, false, missed, right, yes, n = sums
    return {
        "accuracy": float(_ratio(right, n)),
        "precision": float(_ratio(true, true + false)),
        "recall": float(_ratio(true, true + missed)),
        "yes_ratio": float(_ratio(yes, n)),
    }


F1 = Metric("F1", _pope_counts, _f1, _pope_details)


def _mme_counts(records: Sequence[Scored]) -> np.ndarray:
    """One row per pair; for each category the columns right answers, questions, pairs with both right, pairs."""
    categories = sorted({record.category for record in records})
    pairs: dict[str, list[Scored]] = {}
    for record in records:
        pairs.setdefault(record.group, []).append(record)
    counts = np.zeros((len(pairs), len(categories), 4))
    for row, members in zip(counts, pairs.values(), strict=True):
        right = [member.score for member in members]
        row[categories.index(members[0].category)] = sum(right), len(right), all(right), 1
    return counts.reshape(len(pairs), -1)


def _mme_parts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """acc and acc+ of each category, [..., categories], NaN for those that do not occur."""
    table = sums.reshape(*sums.shape[:-1], -1, 4)
    return _ratio(table[..., 0], table[..., 1]), _ratio(table[..., 2], table[..., 3])


def _mean_present(values: np.ndarray) -> np.ndarray:
    present = ~np.isnan(values)
    return np.where(present, values, 0.0).sum(-1) / np.maximum(1, present.sum(-1))


def _mme_value(sums: np.ndarray) -> np.ndarray:
    acc, acc_plus = _mme_parts(sums)
    return _mean_present((acc + acc_plus) / 2)


def _mme_details(sums: np.ndarray) -> dict[str, float]:
    acc, acc_plus = _mme_parts(sums)
    return {"accuracy": float(_mean_present(acc)), "accuracy_plus": float(_mean_present(acc_plus))}


# MME's own score of a category is acc + acc+ (at most 200); the mean over categories is halved to a percentage,
# as MME's normalised total (perception + cognition) / 2800 is.
MME = Metric("(acc + acc+) / 2", _mme_counts, _mme_value, _mme_details)

METRICS: dict[str, Metric] = {metric.name: metric for metric in (ACCURACY, F1, MME)}


def split_options(question: str) -> tuple[str, ...]:
    """The option texts of "... ? (a) red (b) dark blue"."""
    return tuple(part.strip() for part in re.split(r"\([a-d]\)", question)[1:])
