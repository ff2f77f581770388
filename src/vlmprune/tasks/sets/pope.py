"""POPE (Li et al., EMNLP 2023, arXiv 2305.10355): is there such an object? Random, popular and adversarial negatives.

Questions about one picture share a group. Not verified offline: the columns on the hub and of the TSV.
"""

from dataclasses import replace

from vlmprune.data.columns import Columns
from vlmprune.data.rows import FILE
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import F1
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, lower, parquet, set_from, then
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import SHORT, YES_OR_NO, kit

_HUB = Columns(id=("category", "question_id"), group="image_source", category="category", adapt=lower("answer"))
_KIT = replace(_HUB, id="index", group="image_path")
_NATIVE = Columns(
    question="text",
    answers="label",
    id=("_split", "question_id"),
    group="image",
    category="_split",
    adapt=then(lower("label"), set_from("_split", lambda row: row[FILE].split("_")[2])),  # coco_pope_random
)
_SHORT = Wording("{question}" + SHORT)

POPE = DataTask(
    name="pope",
    dimension="hallucination",
    summary="is there such an object in the picture",
    metric=F1,
    chance=200 / 3,  # by always saying yes
    kind="yesno",
    files=(
        kit_tsv("POPE", _KIT),
        Files(("coco_pope_*.json*",), _NATIVE, pictures="val2014"),
        Files(("coco/coco_pope_*.json",), _NATIVE, pictures="../val2014"),
        Files(("output/coco/coco_pope_*.json",), _NATIVE, pictures="../../val2014"),
        *parquet("test", _HUB),
    ),
    hub=Hub("lmms-lab-encoder/POPE", "test", _HUB),
    where="https://github.com/RUCAIBox/POPE (questions) and http://images.cocodataset.org/zips/val2014.zip (pictures)",
    size="9,000 questions, 6 GB with all of COCO val2014",
    wordings={
        "lmms": replace(_SHORT, max_new_tokens=128),
        **kit(Wording(), qwen2_vl=Wording("{question}" + YES_OR_NO)),
        "llava": _SHORT,
    },
)
