"""What a study is given and what it gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmprune.analyze.pictures import Picture
from vlmprune.analyze.reading import Reading
from vlmprune.analyze.subject import Subject, Tell
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sheet:
    """A table of numbers and words."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Finding:
    """What a study found.

    Attributes:
        title: in words.
        text: paragraphs of what it shows.
        figures: by the names of their files, in order.
        sheets: tables by the names of their files; the first has the numbers that the text speaks of.
    """

    title: str
    text: Sequence[str]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    sheets: Mapping[str, Sheet] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A model, pictures, and where finished parts are kept.

    Attributes:
        folder: of finished parts.
        limit: questions of each kind, where a study asks some.
        tell: is told of progress.
        seed: of everything that is drawn.
    """

    subject: Subject
    pictures: Sequence[Picture]
    folder: Path
    limit: int
    tell: Tell
    seed: int = 0

    def readings(self) -> list[Reading]:
        """Of the encoder, one for each picture."""
        return self.subject.readings(self.pictures, self.tell)

    def once(self, what: str, settings: Any, make: Callable[[], Any]) -> Any:
        """A JSON value that is computed once for this model and these settings."""
        text = json.dumps([self.subject.identity, what, settings], sort_keys=True)
        path = self.folder / f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        if not path.is_file():
            made = json.dumps(make())
            self.subject.begin()
            write_whole(path, made)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"The file {str(path)!r} is broken: delete it, and run the command again.") from error


Study = Callable[[Asked], Finding]
