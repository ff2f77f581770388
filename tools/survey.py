"""Survey every image-text type of the installed transformers, and store what was found for `vlmprune list models`.

    python tools/survey.py                 all types (about five minutes)
    python tools/survey.py TYPE ...        only print what is found of these

Run `python tools/docs.py` afterwards: docs/models.md shows the table.
"""

from __future__ import annotations

import sys
import warnings

import torch
import transformers

from vlmprune.doctor.methods import Wrong
from vlmprune.doctor.survey import survey
from vlmprune.models import FAMILIES
from vlmprune.models.surveyed import Surveyed, image_text_types, write


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    found: dict[str, Surveyed] = {}
    wrong = 0
    for name in names or [name for name in image_text_types() if name not in FAMILIES]:
        try:
            found[name] = survey(name)
            print(f"{name}: {found[name].verdict}: {found[name].words}", flush=True)
        except Wrong as error:
            print(f"WRONG: {error}", flush=True)
            wrong += 1
    if not names and not wrong:
        write(found)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
