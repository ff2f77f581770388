"""VizWiz (Gurari et al., CVPR 2018, arXiv 1802.08218), validation: blind people's photographs and questions.

Papers quote LLaVA's 50.0 of test-dev, which only a server scores, beside their own runs on other questions. Not
verified offline: the columns on the hub and of the TSV.
"""

from vlmprune.data.columns import Columns
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import SOFT_ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, parquet, set_from
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import SHORT, UNANSWERABLE, kit_words

_HUB = Columns(answers="answers", id="question_id", category="category")
_KIT = Columns(answers="answers", id="index")
_NATIVE = Columns(
    answers="answers",
    id="image",
    category="answer_type",
    adapt=set_from("answers", lambda row: [one["answer"] for one in row["answers"]]),
)
_TAIL = UNANSWERABLE + SHORT

VIZWIZ = DataTask(
    name="vizwiz",
    dimension="visual question answering",
    summary="blind people's photographs; some cannot be answered",
    metric=SOFT_ACCURACY,
    chance=0.0,
    kind="vqa",
    files=(
        kit_tsv("VizWiz", _KIT),
        Files(("val.json",), _NATIVE, pictures="val"),
        Files(("Annotations/val.json",), _NATIVE, pictures="../val"),
        *parquet("val", _HUB),
    ),
    hub=Hub("lmms-lab-encoder/VizWiz-VQA", "val", _HUB),
    where="https://vizwiz.org/tasks-and-datasets/vqa/",
    size="4,319 questions, 3 GB",
    wordings={
        "lmms": Wording("{question}" + _TAIL, capitalized=True),
        **kit_words(""),
        "llava": Wording("{question}" + _TAIL),
    },
)
