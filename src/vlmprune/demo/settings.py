"""What a visitor has chosen, and the same as the query of a link."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, urlencode

from vlmprune.core.budget import parse_keep
from vlmprune.core.errors import UserError

MOST_METHODS = 6
_LONGEST = 1000  # characters of a question
_KEYS = ("sample", "question", "method", "keep")


@dataclass(frozen=True)
class Settings:
    """What is asked, of which picture, and how it is pruned.

    Attributes:
        sample: the name of a sample picture; empty for a photo of the visitor's own, which no link can hold.
        question: as the model is asked.
        methods: names or recipes.
        keep: the share of visual tokens that methods keep whose recipe has no budget of its own.
    """

    sample: str
    question: str
    methods: tuple[str, ...]
    keep: float

    def query(self) -> str:
        """These settings as the query of a link, with the question mark."""
        pairs = [("sample", self.sample)] if self.sample else []
        pairs += [("question", self.question), *(("method", name) for name in self.methods), ("keep", f"{self.keep:g}")]
        return "?" + urlencode(pairs)

    def check(self, samples: Collection[str], offered: Collection[str]) -> None:
        """Check what a visitor sends. A page offers only what is in these lists, but a request can say anything.

        Above all a method may be named by a file of the server, which would be run: only names that are offered pass.

        Raises:
            UserError: something is missing, unknown or too much.
        """
        if self.sample and self.sample not in samples:
            raise UserError(f"There is no sample {self.sample!r}: choose from {', '.join(samples)}.")
        if not self.question.strip():
            raise UserError("There is no question: type one.")
        if len(self.question) > _LONGEST:
            raise UserError(f"The question has more than {_LONGEST} characters: shorten it.")
        if len(self.methods) > MOST_METHODS:
            raise UserError(f"More than {MOST_METHODS} methods at once are too many: take some away.")
        for name in self.methods:
            if name not in offered:
                raise UserError(f"The method {name!r} is not offered here: choose one from the list.")
        if not 0.0 < self.keep <= 1.0:
            raise UserError("The share to keep must be above 0 and at most 1.")


def read_query(query: str, default: Settings, samples: Collection[str], offered: Collection[str]) -> Settings | None:
    """The settings of a link; what it does not say is as by default. None where it says nothing.

    Raises:
        UserError: it says something that is not offered or cannot be read.
    """
    said = parse_qs(query.removeprefix("?"), keep_blank_values=True)
    if not said.keys() & set(_KEYS):
        return None
    found = replace(
        default,
        sample=_last(said.get("sample"), default.sample),
        question=_last(said.get("question"), default.question),
        methods=tuple(dict.fromkeys(said["method"])) if "method" in said else default.methods,
        keep=_share(_last(said.get("keep"), f"{default.keep:g}")),
    )
    found.check(samples, offered)
    return found


def _last(values: Sequence[str] | None, default: str) -> str:
    return values[-1] if values else default


def _share(text: str) -> float:
    keep = parse_keep(text)
    if not isinstance(keep, float):
        raise UserError(
            f"The link says keep={text}, and this page keeps a share of the tokens: write one such as 0.25."
        )
    return keep
