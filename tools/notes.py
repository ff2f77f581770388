"""The changelog's section of a version: what a release says.

    python tools/notes.py v0.1.0

Fails where the section is missing or empty, is still called unreleased, or where the package has another version.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADING = re.compile(r"^## (\S+)(?: \((.+)\))?$", re.MULTILINE)


def notes(tag: str, changelog: str, version: str) -> str:
    """The section of the version that a tag names, without its heading.

    Raises:
        ValueError: it cannot be released, in one sentence.
    """
    wanted = tag.removeprefix("v")
    if wanted != version:
        raise ValueError(f"The tag says {wanted}, and pyproject.toml {version}.")
    headings = list(HEADING.finditer(changelog))
    for number, heading in enumerate(headings):
        if heading[1] != wanted:
            continue
        if heading[2] == "unreleased":
            raise ValueError(f"CHANGELOG.md calls {wanted} unreleased: write the date there.")
        end = headings[number + 1].start() if number + 1 < len(headings) else len(changelog)
        if text := changelog[heading.end() : end].strip():
            return text
    raise ValueError(f"CHANGELOG.md says nothing of {wanted}.")


def main() -> int:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    try:
        print(notes(sys.argv[1], (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
