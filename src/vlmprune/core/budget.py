"""Budgets: from a user's `keep` to a number of tokens."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from vlmprune.core.errors import Option, UserError

Keep = float | int
_PER_FRAME = "/frame"  # what follows a budget for each frame
_BY_AGE = re.compile(r"(?P<latest>[^/]+)/latest(?P<images>\d*)\+(?P<older>[^/]+)/older")

# What a budget counts. Each method has a meaning of its own (`Method.budget_means`), which papers' settings rely on.
# The others mean the same for every method: the tokens that enter a decoder layer, mean over the layers; and those that
# are left at the end.
OWN, MEAN, FINAL = BUDGETS = ("own", "mean", "final")
BUDGET_WORDS = {OWN: "", MEAN: "mean over the layers", FINAL: "left at the end"}


@dataclass(frozen=True, repr=False)
class ByFrame:
    """A budget for each frame of a video, each a number of tokens or a share of the frame's. A picture is one frame.

    A method never sees it: it selects among the tokens of one frame at a time (see `Act.by_frame`).

    Attributes:
        keeps: the budgets, in order of time.
        alike: whether there is one, which holds for every frame.
    """

    keeps: tuple[Keep, ...]
    alike: bool

    def __str__(self) -> str:
        return f"{self.keeps[0] if self.alike else list(self.keeps)}{_PER_FRAME}"

    def __repr__(self) -> str:
        return repr(str(self))  # in a list it stands between quotes, as a user writes it

    def of(self, frames: int) -> ByFrame:
        """One budget for each of so many frames.

        Raises:
            UserError: it has another number of budgets.
        """
        if not self.alike and len(self.keeps) != frames:
            raise UserError(
                f"keep={self} has {_counted(len(self.keeps), 'budget')} where there {'is' if frames == 1 else 'are'} "
                f"{_counted(frames, 'frame')}: give one for each frame (of which a model may make fewer than there are "
                "pictures), or one for all, as in 16/frame."
            )
        return ByFrame(self.keeps * frames if self.alike else self.keeps, alike=False)


@dataclass(frozen=True)
class Keeps:
    """A budget for each image (or video), in prompt order. A method never sees it: `Act.at` picks an image's budget.

    Where each sample has a single video, a list of another length has a budget for each of its frames.

    Attributes:
        rows: the budgets of each sample's images.
        shared: whether there is one row, which holds for every sample.
    """

    rows: tuple[tuple[Keep | ByFrame, ...], ...]
    shared: bool

    def __str__(self) -> str:
        rows = [list(row) for row in self.rows]
        return str(rows[0] if self.shared else rows)

    @property
    def different(self) -> list[Keep | ByFrame]:
        """The distinct budgets; `1` (one token) and `1.0` (all tokens) are two of them."""
        return list({(type(keep), keep): keep for row in self.rows for keep in row}.values())

    def at(self, sample: int, image: int, images: int) -> Keep | ByFrame:
        """The budget of one of a sample's `images`, which have been checked."""
        row = self._row(sample)
        return row[image] if len(row) == images else ByFrame(tuple(_plain(row)), alike=False)

    def for_frames(self, sample: int, images: int, frames: int) -> bool:
        """Whether a sample's budgets are those of the frames of its one video.

        Args:
            frames: of the video; 0 where the sample does not have a single video, or nobody knows its frames.
        """
        row = self._row(sample)
        return images == 1 != len(row) == frames == len(_plain(row))

    def check(self, counts: Sequence[int], frames: Sequence[int]) -> None:
        """Raise UserError unless the samples of a prompt have these numbers of images, or of frames of one video.

        Args:
            counts: images of each sample.
            frames: as `for_frames` takes them, of each sample.
        """
        if not self.shared and len(self.rows) != len(counts):
            raise UserError(
                f"keep={self} has a list for each of {len(self.rows)} samples, but the batch has {len(counts)}: give "
                "one list for each sample of the batch."
            )
        for sample, count in enumerate(counts):
            own = len(self._row(sample))
            if own == count or self.for_frames(sample, count, frames[sample]):
                continue
            has = f"keep={self} has {_counted(own, 'budget')} for sample {sample}, whose prompt has"
            if frames[sample]:
                raise UserError(
                    f"{has} one video of {_counted(frames[sample], 'frame')}: give one for each frame (of which a "
                    "model may make fewer than there are pictures), or one for the video."
                )
            raise UserError(
                f"{has} {_counted(count, 'image')}: give one for each image, and a list for each sample where samples "
                "differ, as in [[0.5, 0.1], [0.5]]."
            )

    def _row(self, sample: int) -> tuple[Keep | ByFrame, ...]:
        return self.rows[0 if self.shared else sample]

    def in_a_row(self, count: int) -> list[Keep | ByFrame]:
        """The budgets of all images of a batch, one sample after another, if only the number of images is known.

        Raises:
            UserError: the budgets do not fit that number.
        """
        budgets = [keep for row in self.rows for keep in row]
        if self.shared and count % len(budgets) == 0:
            return budgets * (count // len(budgets))
        if self.shared or len(budgets) != count:
            raise UserError(
                f"keep={self} has {_counted(len(budgets), 'budget')}, but {count} pictures are encoded "
                "together: give one for each picture."
            )
        return budgets


@dataclass(frozen=True)
class ByAge(Keeps):
    """A budget by the age of an image in a conversation: one for the latest of each prompt, one for all before them.

    Written `0.5/latest+0.1/older`, or `0.5/latest2+0.1/older` where the last two images are the latest. What counts is
    the order in one prompt: in a further turn on the same cache the images of that turn are a prompt of their own, and
    those in the cache stay as they were cut.

    Attributes:
        images: how many at the end of a prompt are the latest.
    """

    images: int = 1

    def __post_init__(self) -> None:
        if self.images < 1:
            raise UserError("At least one image must be the latest: write 0.5/latest+0.1/older.")

    def __str__(self) -> str:
        older, latest = self.rows[0]
        return f"{latest}/latest{'' if self.images == 1 else self.images}+{older}/older"

    @property
    def latest(self) -> Keep:
        """The budget of the latest."""
        keep = self.rows[0][1]
        assert not isinstance(keep, ByFrame)  # see `by_age`
        return keep

    def at(self, sample: int, image: int, images: int) -> Keep | ByFrame:
        """The budget of one of a sample's `images`."""
        return self.rows[0][image >= images - self.images]

    def for_frames(self, sample: int, images: int, frames: int) -> bool:
        """Never: a video has the budget of its age as a whole."""
        return False

    def check(self, counts: Sequence[int], frames: Sequence[int]) -> None:
        """Nothing to check: it fits any number of images."""

    def in_a_row(self, count: int) -> list[Keep | ByFrame]:
        """Those of one prompt; whether the images are of several is checked when the prompt is read."""
        return [self.at(0, image, count) for image in range(count)]


def by_age(latest: Keep, older: Keep, images: int = 1) -> ByAge:
    """A budget for the last so many images of a prompt, and one for all before them; or UserError."""
    return ByAge(((check_keep(older), check_keep(latest)),), shared=True, images=images)


# What a user may give; a string is a budget for each frame of a video, "16/frame" or "[128, 64, 32]/frame", or one by
# the age of an image, "0.5/latest+0.1/older".
Budget = Keep | str | Sequence[Keep | str] | Sequence[Sequence[Keep | str]] | ByFrame | Keeps

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


def check_budget(budget: object) -> Keep | ByFrame | Keeps:
    """Return a user's `keep` as one budget for all images or, if it is a list, one for each; or raise UserError.

    Args:
        budget: a budget, or a string with one for each frame or by the age of an image; a list with a budget for each
            image (or each frame of a video), the same for every sample; or such a list per sample.
    """
    if isinstance(budget, str) and (aged := _BY_AGE.fullmatch(budget)):
        return _read_by_age(aged)
    if not isinstance(budget, list | tuple):
        return budget if isinstance(budget, Keeps) else _of_image(budget)
    nested = [isinstance(row, list | tuple) for row in budget]
    rows = budget if all(nested) else [budget]
    if (any(nested) and not all(nested)) or not any(len(row) for row in rows):
        raise UserError(
            f"keep={budget!r} is not a budget for each image: give one list that holds for every sample "
            "([0.5, 0.1]), or a list for each sample ([[0.5, 0.1], [0.5]])."
        )
    return Keeps(tuple(tuple(_of_image(keep) for keep in row) for row in rows), not all(nested))


def _of_image(keep: object) -> Keep | ByFrame:
    """The budget of one image or video, or UserError."""
    if isinstance(keep, ByFrame):
        return keep
    return parse_by_frame(keep) if isinstance(keep, str) and keep.endswith(_PER_FRAME) else check_keep(keep)


def parse_by_frame(text: str) -> ByFrame:
    """Read a budget for each frame: `16/frame` for every one, or `[128, 64, 32]/frame`."""
    number = text.removesuffix(_PER_FRAME).strip()
    if not number.startswith("["):
        return ByFrame((parse_keep(number),), alike=True)
    found = parse_budget(number)
    if not isinstance(found, Keeps) or not found.shared or len(keeps := _plain(found.rows[0])) != len(found.rows[0]):
        raise UserError(f"{text!r} is not a budget for each frame: write 16/frame or [128, 64, 32]/frame.")
    return ByFrame(tuple(keeps), alike=False)


def _read_by_age(written: re.Match[str]) -> ByAge:
    images = written["images"]
    return by_age(parse_keep(written["latest"]), parse_keep(written["older"]), int(images) if images else 1)


def _plain(row: Sequence[Keep | ByFrame]) -> list[Keep]:
    """Those that are not for each frame."""
    return [keep for keep in row if not isinstance(keep, ByFrame)]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def check_kind(kind: object) -> str:
    """Return what a budget counts, one of `BUDGETS`, or raise UserError."""
    if kind not in BUDGETS:
        raise UserError(Option("budget", kind), f" is not what a budget can count: choose {', '.join(BUDGETS)}.")
    return str(kind)


def written_budget(keep: Keep | ByFrame | Keeps, kind: str = OWN) -> str:
    """A budget as recipes write it: `0.222`, or `mean=0.222` where it is not counted the method's own way."""
    return str(keep) if kind == OWN else f"{kind}={keep}"


def read_budget(text: str) -> tuple[Keep | ByFrame | Keeps, str]:
    """A budget and what it counts; the inverse of `written_budget`."""
    kind, given, keep = text.partition("=")
    if not given:
        return parse_budget(text), OWN
    if kind.strip() not in (MEAN, FINAL):
        raise UserError(f"{text!r} is not a budget: write 0.222, {MEAN}=0.222 or {FINAL}=0.222.")
    return parse_budget(keep.strip()), kind.strip()


def parse_budget(text: str) -> Keep | ByFrame | Keeps:
    """Read a budget as recipes write it: a number, or for each frame, by age, or a list such as `[0.5, 64]`."""
    if aged := _BY_AGE.fullmatch(text):
        return _read_by_age(aged)
    if text.endswith(_PER_FRAME):
        return parse_by_frame(text)
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
