"""How a question is put to a model in words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlmprune.core.errors import UserError
from vlmprune.data.sample import Sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FIELD = re.compile(r"\{(question|options|hint)\}( ?)")


@dataclass(frozen=True)
class Wording:
    """A template for one task under one protocol.

    Attributes:
        text: with `{question}`, `{options}` and `{hint}`; a line all of whose fields are empty is left out, and
            with an empty field the space behind it.
        with_options: the template for a sample with options, "" for the same one.
        option: how an option is written, with `{letter}` and `{text}`; options stand on lines of their own.
        without: words that are taken out of the question, as protocols do that ask for the form of the answer in
            words of their own.
        capitalized: whether the question is written with a capital letter, and small ones after it.
        needs_hint: whether a sample without a hint cannot be asked in these words.
        interleaved: whether pictures stand where the question marks them. Without it they stand before the text, where
            the marks are left.
        system: a system message, "" for the protocol's.
        max_new_tokens: length of a reply; None as the protocol or the task says.
        reads: the kind by which replies are scored; None as the sample says.
    """

    text: str = "{question}"
    with_options: str = ""
    option: str = "{letter}. {text}"
    without: str = ""
    capitalized: bool = False
    needs_hint: bool = False
    interleaved: bool = True
    system: str = ""
    max_new_tokens: int | None = None
    reads: str | None = None

    def of(self, sample: Sample) -> str:
        """The words for one sample, with the marks of its pictures.

        Raises:
            UserError: the sample lacks what they need.
        """
        if self.needs_hint and not sample.hint:
            what = self.text.replace("\n", " / ")
            raise UserError(
                f"{sample.id} cannot be asked as {what!r}: this copy of the data has no hint. Get the data set of the "
                "hub, or ask with another protocol."
            )
        fields = {"question": self._question(sample), "options": self._options(sample), "hint": sample.hint}
        template = self.with_options if sample.options and self.with_options else self.text
        lines = []
        for line in template.split("\n"):
            named = [name for name, _ in _FIELD.findall(line)]
            if not named or any(fields[name] for name in named):
                lines.append(_FIELD.sub(lambda field: fields[field[1]] and fields[field[1]] + field[2], line))
        return "\n".join(lines)

    def _question(self, sample: Sample) -> str:
        question = sample.question.replace(self.without, "") if self.without else sample.question
        return question.capitalize() if self.capitalized else question

    def _options(self, sample: Sample) -> str:
        lettered = zip(LETTERS, sample.options, strict=False)
        return "\n".join(self.option.format(letter=letter, text=text) for letter, text in lettered)
