"""How a question is put to a model in words."""

from __future__ import annotations

from dataclasses import dataclass

from vlmprune.data.sample import Sample


@dataclass(frozen=True)
class Wording:
    """A template for one task under one protocol.

    Attributes:
        text: with `{question}`, `{options}` and `{hint}`; a line whose only field is empty is left out.
        option: how an option is written, with `{letter}` and `{text}`; options stand on lines of their own.
        system: a system message, "" for none.
        max_new_tokens: length of a reply; None as the task says.
        reads: the kind by which replies are scored; None as the sample says.
    """

    text: str = "{question}"
    option: str = "{letter}. {text}"
    system: str = ""
    max_new_tokens: int | None = None
    reads: str | None = None

    def of(self, sample: Sample) -> str:
        """The words for one sample, with the marks of its pictures."""
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        options = "\n".join(
            self.option.format(letter=letter, text=text) for letter, text in zip(letters, sample.options, strict=False)
        )
        fields = {"question": sample.question, "options": options, "hint": sample.hint}
        lines = []
        for line in self.text.split("\n"):
            named = [name for name in fields if f"{{{name}}}" in line]
            if named and not any(fields[name] for name in named):
                continue
            for name in named:
                line = line.replace(f"{{{name}}}", fields[name])
            lines.append(line)
        return "\n".join(lines)
