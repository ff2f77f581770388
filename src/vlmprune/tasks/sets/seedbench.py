"""SEED-Bench-2-Plus (Li et al., arXiv 2404.16790): multiple choice about charts, maps and web pages full of text.

Not verified offline: the columns on the hub.
"""

from vlmprune.data.cells import LETTER
from vlmprune.data.columns import Columns
from vlmprune.data.source import Hub
from vlmprune.scoring.metrics import ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import OPTIONS, kit_tsv, parquet
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import CHOICE, DIRECTLY, kit_choice

_HUB = Columns(
    options=("choice_A", "choice_B", "choice_C", "choice_D"),
    named=LETTER,
    id="question_id",
    category="question_image_type",
)
_KIT = Columns(options=OPTIONS[:4], named=LETTER, id="index", category="category")

SEEDBENCH = DataTask(
    name="seedbench-2-plus",
    dimension="OCR",
    summary="multiple choice about charts, maps and web pages",
    metric=ACCURACY,
    chance=25.0,
    kind="option",
    files=(kit_tsv("SEEDBench2_Plus", _KIT), *parquet("test", _HUB)),
    hub=Hub("doolayer/SEED-Bench-2-Plus", "test", _HUB),
    where="https://opencompass.openxlab.space/utils/VLMEval/SEEDBench2_Plus.tsv",
    size="2,277 questions, 800 MB",
    wordings={
        "lmms": Wording("{question}\n{options}" + DIRECTLY, max_new_tokens=16, reads="option-first"),
        **kit_choice(),
        "llava": CHOICE,
    },
)
