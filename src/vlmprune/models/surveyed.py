"""What is known of every image-text type of transformers, also of those that have no adapter and no test of their own.

`surveyed.json` is written by `tools/survey.py`, which builds a tiny model of each type and asks the oracle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from vlmprune.models import FAMILIES

FILE = Path(__file__).with_name("surveyed.json")
PROVED, PARTLY, REFUSED, UNPROVED = "proved", "partly", "refused", "unproved"
NEW = "it is new in your transformers and was not surveyed: vlmprune doctor says what works"


@dataclass(frozen=True)
class Surveyed:
    """What was found of one type.

    Attributes:
        verdict: "proved" where a tiny model equals the oracle, cut before its language model and inside; "partly" where
            it does before it, and cuts inside are refused; "refused" where vlmprune does not prune it; "unproved" where
            no tiny model of it could be built or asked.
        words: why it is not proved, or what was proved.
    """

    verdict: str
    words: str


@cache
def surveyed() -> dict[str, Surveyed]:
    """By model_type, in alphabetical order: what was surveyed, and the types that the installed transformers adds.

    Without those that have an adapter, of which the tests say more.
    """
    held = json.loads(FILE.read_text(encoding="utf-8"))
    found = {name: Surveyed(**entry) for name, entry in held["types"].items()}
    if version("transformers") != held["transformers"]:  # asked without importing it, which takes a second
        found |= {name: Surveyed(UNPROVED, NEW) for name in image_text_types() if name not in found}
    return {name: one for name, one in sorted(found.items()) if name not in FAMILIES}


def image_text_types() -> Mapping[str, str]:
    """Model types of images and text that the installed transformers knows, with the names of their classes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES  # type: ignore[no-any-return]


def write(types: Mapping[str, Surveyed]) -> None:
    """Store what a survey of the installed transformers found."""
    held = {
        "transformers": version("transformers"),
        "types": {name: vars(found) for name, found in sorted(types.items())},
    }
    FILE.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
