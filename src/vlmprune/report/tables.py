"""How figures are written in every form of a table, and how a table's rows are put together.

All forms (`report.markdown`, `report.comma_separated`, `report.latex`, the page) say the same. Nothing in them depends
on when or where a run was made, so the same records give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlmprune.bench.more_frames import FramesRow
from vlmprune.bench.ranks import REL
from vlmprune.bench.stats import Estimate
from vlmprune.bench.table import (
    ENOUGH_HARD,
    NOT_MEASURED,
    TOO_GOOD,
    VAGUE,
    Asked,
    Cell,
    Hard,
    Ranking,
    Row,
    Spread,
    Table,
)  # fmt: skip
from vlmprune.core.budget import BUDGET_WORDS

MISSING = "–"
SIGNIFICANT = "*"
FLAGS = {
    "†": f"above {TOO_GOOD:.0f} % of vanilla: look for chance, a small n, or a weakness of the unpruned model",
    "‡": f"more than {VAGUE:.0f} % of the replies hold no answer of the asked kind; they count as wrong",
    SIGNIFICANT: "significantly different from vanilla at 5 % after Holm's correction over the methods of the same "
    "model, budget and task",
}
OWN_BUDGETS = "as each recipe says"
HARD_WORDS = (
    "Mean score of all questions / of those that `downsample` gets wrong at the same budget, in percent, with their "
    f"number; a dash where they are fewer than {ENOUGH_HARD}. Pruning has to be better than a smaller image on these."
)
RANK_WORDS = (
    "How often each method has the best rel_mean when the questions of every task are weighted at random, the same way "
    "for all methods, and its mean rank with the 95 % interval of the ranks. Tasks are fixed. Methods whose intervals "
    "overlap widely cannot be told apart."
)


@dataclass(frozen=True)
class Block:
    """The rows of a model that had the same budget. The model's vanilla row comes first, where there is one."""

    asked: Asked | None
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return budget_words(self.asked)

    @property
    def pruned(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.is_vanilla)

    @property
    def compared(self) -> bool:
        """Whether there is a difference to vanilla to show."""
        return any(cell.diff for row in self.rows for cell in row.cells.values())

    @property
    def has_hard(self) -> bool:
        """Whether `downsample` was run at this budget."""
        hard = (cell.hard for row in self.rows for cell in row.cells.values())
        return self.asked is not None and any(self.asked in found for found in hard)


def budget_words(asked: Asked | None) -> str:
    """A budget for people: "33.3 %", "64 tokens, left at the end"; recipes with their own: "as each recipe says"."""
    if asked is None:
        return OWN_BUDGETS
    keep, kind = asked
    words = f"{keep} tokens" if isinstance(keep, int) else f"{100 * keep:.1f} %"
    return f"{words}, {BUDGET_WORDS[kind]}" if kind else words


def blocks(table: Table) -> list[Block]:
    """The table's rows by budget, from the largest share down, numbers of tokens after shares, recipes' own last."""
    vanilla = [row for row in table.rows if row.is_vanilla]
    pruned = [row for row in table.rows if not row.is_vanilla]
    budgets = sorted({row.asked for row in pruned}, key=_order)
    if not budgets:
        return [Block((1.0, ""), tuple(vanilla))] if vanilla else []
    return [Block(asked, (*vanilla, *(row for row in pruned if row.asked == asked))) for asked in budgets]


def _order(asked: Asked | None) -> tuple[bool, str, bool, float]:
    if asked is None:
        return (True, "", True, 0.0)
    return (False, asked[1], isinstance(asked[0], int), -float(asked[0]))


def rankings(table: Table, measure: str = REL) -> list[Ranking]:
    """The table's rankings by one measure, in the order of its blocks."""
    return sorted((one for one in table.rankings if one.measure == measure), key=lambda one: _order(one.asked))


def flags(cell: Cell) -> str:
    """The signs of `FLAGS` that this cell's value earns."""
    return ("†" if cell.too_good else "") + ("‡" if cell.vague else "")


def interval(estimate: Estimate, signed: bool = False) -> str:
    """ "[83.0, 90.8]" """
    form = number if not signed else signed_number
    return f"[{form(estimate.low)}, {form(estimate.high)}]"


def number(value: float | None, digits: int = 1) -> str:
    """A figure with a fixed number of digits, a dash where there is none; never a negative zero."""
    if value is None or value != value:
        return MISSING
    return f"{value:.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def value_words(cell: Cell) -> str:
    """A cell's value with its flags, "not measured" where a judge is missing."""
    return NOT_MEASURED if cell.unmeasured else number(cell.value.value) + flags(cell)


def signed_number(value: float | None) -> str:
    """ "+1.2", "−3.4" (a true minus sign), "0.0"."""
    text = number(value)
    if text == MISSING or not float(text):
        return text
    return f"−{text[1:]}" if text.startswith("-") else f"+{text}"


def percent(value: float | None) -> str:
    text = number(value)
    return text if text == MISSING else f"{text} %"


def p_value(value: float | None) -> str:
    """ "0.031", "<0.001", a dash where nothing was tested."""
    return "<0.001" if value is not None and value < 0.0005 else number(value, 3)


def spread_words(spread: Spread | None) -> str:
    """ "sd 1.2, 70.0 to 72.3 over 3 seeds"; nothing where there is one seed."""
    if spread is None:
        return ""
    return f"sd {number(spread.sd)}, {number(spread.low)} to {number(spread.high)} over {len(spread.seeds)} seeds"


def mean_words(value: float | None, spread: Spread | None, unit: str = "") -> str:
    """A mean over tasks, with its spread over seeds in brackets."""
    text = number(value)
    text = text if text == MISSING else text + unit
    return text if spread is None else f"{text} ({spread_words(spread)})"


def hard_words(block: Block, row: Row, task: str) -> str:
    """ "81.0 / 62.5, n = 16": all questions, and those that downsampling gets wrong."""
    cell = row.cells.get(task)
    hard = None if cell is None or block.asked is None else cell.hard.get(block.asked)
    return MISSING if cell is None or hard is None else f"{number(cell.accuracy)} / {_hard(hard)}"


def _hard(hard: Hard) -> str:
    return f"{number(hard.value)}, n = {hard.n}"


def row_name(block: Block, row: Row) -> str:
    """The method; the whole recipe where rows of a block differ in their budgets."""
    return row.recipe if block.asked is None else row.method


def flops_share(block: Block, row: Row, count: str = "total") -> str:
    """Operations as a share of vanilla's in the same block; a dash where the model's shape or a cost is not known.

    Args:
        count: a field of `Flops`: "total" by our formula, "papers" or "papers_gated" by the papers'.
    """
    base = next((other.flops for other in block.rows if other.is_vanilla), None)
    if base is None or row.flops is None:
        return MISSING
    own = getattr(row.flops, count)
    return percent(None if own is None else 100 * own / getattr(base, count))


def frames_flops(row: FramesRow) -> tuple[str, str]:
    """Operations in GFLOPs, of the encoder with its projector and of all that comes after; dashes where not known."""
    found = row.flops
    if found is None:
        return MISSING, MISSING
    encoder = None if found.encoder is None or found.projector is None else found.encoder + found.projector
    later = None if found.selection is None else found.prefill + found.selection
    return tuple(number(None if value is None else value / 1e9, 2) for value in (encoder, later))  # type: ignore[return-value]


def notes(tables: Sequence[Table]) -> list[str]:
    """What a reader must know beside the figures: `facts`, and what the flags mean."""
    cells = list(_cells(tables))
    used = {sign for cell in cells for sign in flags(cell) + (SIGNIFICANT if cell.significant else "")}
    return facts(tables) + [f"{sign} {meaning}." for sign, meaning in FLAGS.items() if sign in used]


def facts(tables: Sequence[Table]) -> list[str]:
    """What a reader must know of the runs.

    The tasks left out of the averages, how the question was read, which rows are means over seeds, and what could not
    be asked.
    """
    said = [
        f"{table.model}: {task} is left out of the averages ({why})."
        for table in tables
        for task, why in table.left_out.items()
    ]
    for table in tables:
        sentences = (*table.texts(), *table.seeds(), *table.judges(), *table.gaps(), *table.absent())
        said += [f"{table.model}: {sentence}" for sentence in sentences]
    return said


def _cells(tables: Iterable[Table]) -> Iterable[Cell]:
    return (cell for table in tables for row in table.rows for cell in row.cells.values())
