"""ScienceQA (Lu et al., NeurIPS 2022, arXiv 2209.09513), the questions of the test split that have a picture.

LLaVA's scripts read the prompt from a file of its own (`llava_test_CQM-A.json`); the words here are lmms-eval's, which
follow it. Not verified offline: that file, and the columns on the hub.
"""

from dataclasses import replace

from vlmprune.data.cells import LETTER, NUMBER
from vlmprune.data.columns import Columns
from vlmprune.data.rows import LINE
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import OPTIONS, kit_tsv, parquet, set_from
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import DIRECTLY, kit_choice

_KIT = Columns(options=OPTIONS, named=LETTER, id="index", category="category", hint="hint")
_HUB = Columns(options="choices", named=NUMBER, id=LINE, category="subject", hint="hint")
_NATIVE = Columns(
    options="choices",
    named=NUMBER,
    category="subject",
    hint="hint",
    adapt=set_from("image", lambda row: f"test/{row['id']}/{row['image']}"),
)
_CONTEXT = Wording("Context: {hint}\n{question}\n{options}" + DIRECTLY, max_new_tokens=16, reads="option-first")

SCIENCEQA = DataTask(
    name="scienceqa",
    dimension="multidisciplinary knowledge",
    summary="school science with a picture, two to five options",
    metric=ACCURACY,
    chance=40.0,  # two to five options, most often two or three
    kind="option",
    files=(
        kit_tsv("ScienceQA_TEST", _KIT),
        Files(("problems.json",), _NATIVE),
        Files(("data/scienceqa/problems.json",), _NATIVE),
        *parquet("test", _HUB, config="ScienceQA-IMG"),
    ),
    # the authors' file holds all splits, and questions without a picture
    only=lambda row: bool(row.get("image")) and row.get("split", "test") == "test",
    hub=Hub("lmms-lab-encoder/ScienceQA", "test", _HUB, config="ScienceQA-IMG"),
    where="https://opencompass.openxlab.space/utils/VLMEval/ScienceQA_TEST.tsv",
    size="2,017 questions, 210 MB",
    wordings={"lmms": _CONTEXT, **kit_choice(), "llava": replace(_CONTEXT, max_new_tokens=1024)},
)
