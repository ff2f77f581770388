"""Files that a page of the documentation writes out."""

from __future__ import annotations

import re
from pathlib import Path

FAMILY_PAGE = Path(__file__).parent.parent / "docs" / "adding-a-family.md"


def family_files() -> dict[str, tuple[str, str]]:
    """By folder, name and code of the files of the worked example of a family."""
    block = re.compile(r"`(\w+)\.py` in\s`([\w/]+)/`.*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return {folder: (name, code) for name, folder, code in block.findall(FAMILY_PAGE.read_text(encoding="utf-8"))}
