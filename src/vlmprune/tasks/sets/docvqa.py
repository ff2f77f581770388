"""DocVQA (Mathew et al., WACV 2021, arXiv 2007.00398), validation: scanned documents.

Not verified offline: the columns on the hub and of the TSV.
"""

from vlmprune.data.columns import Columns
from vlmprune.data.source import Hub
from vlmprune.scoring.metrics import ANLS
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, parquet
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import SHORT, kit_words

_HUB = Columns(answers="answers", id="questionId", group="docId")

DOCVQA = DataTask(
    name="docvqa",
    dimension="OCR",
    summary="scanned documents; near misses in spelling count in part",
    metric=ANLS,
    chance=0.0,
    max_new_tokens=32,
    kind="anls",
    files=(kit_tsv("DocVQA_VAL", Columns(id="index")), *parquet("validation", _HUB, config="DocVQA")),
    hub=Hub("lmms-lab-encoder/DocVQA", "validation", _HUB, config="DocVQA"),
    where="https://opencompass.openxlab.space/utils/VLMEval/DocVQA_VAL.tsv",
    size="5,349 questions, 6 GB",
    wordings={
        "lmms": Wording("{question}" + SHORT, max_new_tokens=32),
        **kit_words(),
        "llava": Wording("{question}" + SHORT),
    },
)
