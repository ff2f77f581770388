"""Budgets: from a user's `keep` to a number of tokens."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from vlmprune.core.errors import Option, UserError

Keep = float | int
Budget = Keep | Sequence[Keep] | Sequence[Sequence[Keep]]  # what a user may give


@dataclass(frozen=True)
class Keeps:
    """A budget for each image (or video), in prompt order. A method never sees it: `Act.at` picks an image's budget.

    Attributes:
        rows: the budgets of each sample's images.
        shared: whether there is one row, which holds for every sample.
    """

    rows: tuple[tuple[Keep, ...], ...]
    shared: bool

    def __str__(self) -> str:
        rows = [list(row) for row in self.rows]
        return str(rows[0] if self.shared else rows)

    @property
    def different(self) -> list[Keep]:
        """The distinct budgets; `1` (one token) and `1.0` (all tokens) are two of them."""
        return list({(type(keep), keep): keep for row in self.rows for keep in row}.values())

    def at(self, sample: int, image: int) -> Keep:
        return self.rows[0 if self.shared else sample][image]

    def check(self, counts: Sequence[int]) -> None:
        """Raise UserError unless the samples of a prompt have these numbers of images."""
        if not self.shared and len(self.rows) != len(counts):
            raise UserError(
                f"keep={self} has a list for each of {len(self.rows)} samples, but the batch has {len(counts)}: give "
                "one list for each sample of the batch."
            )
        for sample, count in enumerate(counts):
            own = len(self.rows[0 if self.shared else sample])
            if own != count:
                raise UserError(
                    f"keep={self} has {own} budget{'s' * (own != 1)} for sample {sample}, whose prompt has {count} "
                    f"image{'s' * (count != 1)}: give one for each image, and a list for each sample where samples "
                    "differ, as in [[0.5, 0.1], [0.5]]."
                )

    def in_a_row(self, count: int) -> list[Keep]:
        """The budgets of all images of a batch, one sample after another, if only the number of images is known.

        Raises:
            UserError: the budgets do not fit that number.
        """
        budgets = [keep for row in self.rows for keep in row]
        if self.shared and count % len(budgets) == 0:
            return budgets * (count // len(budgets))
        if self.shared or len(budgets) != count:
            raise UserError(
                f"keep={self} has {len(budgets)} budget{'s' * (len(budgets) != 1)}, but {count} pictures are encoded "
                "together: give one for each picture."
            )
        return budgets


_NO_BUDGET = " is not a budget: give a share above 0 and at most 1 (0.222), or a number of tokens per image (64)."


def check_keep(keep: object) -> Keep:
    """Return `keep` as a float in (0, 1] or an int >= 1, or raise UserError.

    A float is a share of an image's visual tokens, an int a number of tokens per image: `1` is one token, `1.0` is all.
    """
    budget = _budget(keep)
    if budget is None:
        raise UserError(Option("keep", keep), _NO_BUDGET)
    return budget


def _budget(keep: object) -> Keep | None:
    if not isinstance(keep, Real) or isinstance(keep, bool):
        return None
    if isinstance(keep, Integral):
        return int(keep) if int(keep) >= 1 else None
    return float(keep) if 0.0 < float(keep) <= 1.0 else None


def check_budget(budget: object) -> Keep | Keeps:
    """Return a user's `keep` as one budget for all images or, if it is a list, one for each; or raise UserError.

    Args:
        budget: a budget; a list with a budget for each image, the same for every sample; or such a list per sample.
    """
    if not isinstance(budget, list | tuple):
        return budget if isinstance(budget, Keeps) else check_keep(budget)
    nested = [isinstance(row, list | tuple) for row in budget]
    rows = budget if all(nested) else [budget]
    if (any(nested) and not all(nested)) or not any(len(row) for row in rows):
        raise UserError(
            f"keep={budget!r} is not a budget for each image: give one list that holds for every sample "
            "([0.5, 0.1]), or a list for each sample ([[0.5, 0.1], [0.5]])."
        )
    return Keeps(tuple(tuple(check_keep(keep) for keep in row) for row in rows), not all(nested))


def parse_budget(text: str) -> Keep | Keeps:
    """Read a budget as recipes write it: as `parse_keep`, or a list for each image such as `[0.5, 64]`."""
    if not text.startswith("["):
        return parse_keep(text)
    try:
        budgets = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise UserError(f"{text!r} is not a list of budgets: write one for each image, as in [0.5, 64].") from None
    return check_budget(budgets)


def parse_keep(text: str) -> Keep:
    """Read one budget, as the command line and recipes write it: `64` is a count, `0.222` or `1.0` a share."""
    budget = _budget(_number(text))
    if budget is None:
        raise UserError(f"{text!r}{_NO_BUDGET}")
    return budget


def _number(text: str) -> Keep | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def resolve_keep(keep: Keep, n: int) -> int:
    """Tokens to keep of `n`: `max(1, round(keep * n))` for a share, `min(keep, n)` for a count.

    Python's `round` (half to even) is what DivPrune's and HiPrune's authors use, so their counts come out the same.
    """
    if n <= 0:
        return 0
    if isinstance(keep, int):
        return min(keep, n)
    return min(n, max(1, round(keep * n)))
