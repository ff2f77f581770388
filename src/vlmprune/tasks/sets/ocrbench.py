"""OCRBench (Liu et al., arXiv 2305.07895): reading words, documents and formulas; an answer need only be contained in
the reply.

Not verified offline: the columns on the hub, and where the pictures of the authors' archive lie.
"""

from dataclasses import replace

from vlmprune.data.columns import Columns
from vlmprune.data.rows import LINE
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import OCRBENCH
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import Adapt, kit_tsv, parquet, set_from
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import kit_words

_FORMULAS = "Handwritten Mathematical Expression Recognition"


def _kind(category: str) -> Adapt:
    return set_from("_kind", lambda row: "contains-formula" if row[category] == _FORMULAS else "")


_KIT = Columns(id="index", category="category", kind="_kind", adapt=_kind("category"))
_HUB = replace(_KIT, id=LINE, category="question_type", adapt=_kind("question_type"))
_NATIVE = Columns(
    answers="answers",
    pictures="image_path",
    id=("dataset_name", "id"),
    category="type",
    kind="_kind",
    adapt=_kind("type"),
)

OCRBENCH_TASK = DataTask(
    name="ocrbench",
    dimension="OCR",
    summary="reading words, documents and formulas",
    metric=OCRBENCH,
    chance=0.0,
    kind="contains",
    files=(
        kit_tsv("OCRBench", _KIT),
        Files(("OCRBench.json",), _NATIVE, pictures="OCRBench_Images"),
        *parquet("test", _HUB),
    ),
    hub=Hub("echo840/OCRBench", "test", _HUB),
    where="https://opencompass.openxlab.space/utils/VLMEval/OCRBench.tsv",
    size="1,000 questions, 90 MB",
    wordings={
        "lmms": Wording(max_new_tokens=128),
        **kit_words(""),
        "llava": Wording(),
    },
)
