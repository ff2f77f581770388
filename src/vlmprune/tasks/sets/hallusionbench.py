"""HallusionBench (Guan et al., CVPR 2024, arXiv 2310.14566): yes/no questions about figures, illusions and edited
pictures.

The toolkits ask the 951 questions with a picture; the authors' file has 178 more without. lmms-eval lets a language
model judge the replies; here, as in VLMEvalKit, they are read for yes or no. The pictures' archive is unpacked beside
the file, as the authors say. Not verified offline: the columns on the hub and of the TSV.
"""

from dataclasses import replace

from vlmprune.data.columns import Columns
from vlmprune.data.rows import Row
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import HALLUSION
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, lower, parquet, set_from, then
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import YES_OR_NO, kit

_PARTS = ("category", "subcategory", "set_id", "figure_id", "question_id")
_TO_WORDS = {"0": "no", "1": "yes"}


def _numbers(row: Row) -> Row:
    """The facts that the metric reads; a question without a picture has no figure."""
    figure = row.get("figure_id") if _has_picture(row) else ""
    return {**row, "_text": row.get("question"), "question": row.get("question_id"), "figure": figure}


def _has_picture(row: Row) -> bool:
    return bool(row.get("filename") or row.get("image"))


_COLUMNS = Columns(question="_text", id=_PARTS, group=_PARTS[:3], category="subcategory", facts=("question", "figure"))
_NATIVE = replace(
    _COLUMNS,
    answers="gt_answer",
    pictures="filename",
    adapt=then(_numbers, set_from("gt_answer", lambda row: _TO_WORDS[str(row["gt_answer"])])),
)
_HUB = replace(_NATIVE, pictures="image")
_KIT_PARTS = ("category", "l2-category", "set_id", "figure_id", "question_id")
_KIT = replace(
    _COLUMNS, id=_KIT_PARTS, group=_KIT_PARTS[:3], category="l2-category", adapt=then(_numbers, lower("answer"))
)
_NATIVE_FILES = Files(("HallusionBench.json",), _NATIVE, pictures="hallusion_bench")

HALLUSIONBENCH = DataTask(
    name="hallusionbench",
    dimension="hallucination",
    summary="yes/no about figures, illusions and edited pictures",
    metric=HALLUSION,
    chance=30.0,  # by always saying no: the mean of three accuracies, of which two count groups
    grouped=True,
    kind="yesno",
    files=(kit_tsv("HallusionBench", _KIT), _NATIVE_FILES, *parquet("image", _HUB)),
    only=_has_picture,
    hub=Hub("lmms-lab-encoder/HallusionBench", "image", _HUB),
    where="https://github.com/tianyi-lab/HallusionBench",
    size="951 questions, 200 MB",
    wordings={
        "lmms": Wording(max_new_tokens=128),
        **kit(
            Wording(),
            internvl=Wording(f"{{question}}{YES_OR_NO} Answer the question using a single word or phrase."),
            qwen2_vl=Wording("{question}" + YES_OR_NO),
        ),
        "llava": Wording("{question}\nAnswer the question using a single word or phrase."),
    },
)
HALLUSIONBENCH_ALL = replace(
    HALLUSIONBENCH,
    name="hallusionbench-all",
    summary="HallusionBench with the questions that have no picture",
    files=(_NATIVE_FILES,),
    folder="hallusionbench",
    only=None,
    hub=None,
    size="1,129 questions, 200 MB",
)
