"""VQAv2 (Goyal et al., CVPR 2017, arXiv 1612.00837), validation.

Papers quote test-dev, which only a server scores: their figures are of other questions. Not verified offline: the
columns on the hub.
"""

from vlmprune.data.columns import Columns
from vlmprune.data.source import Hub
from vlmprune.scoring.metrics import SOFT_ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import parquet, set_from
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import SHORT, kit_words

_COLUMNS = Columns(
    answers="answers",
    id="question_id",
    group="image_id",
    category="answer_type",
    adapt=set_from("answers", lambda row: [one["answer"] for one in row["answers"]]),
)
_SHORT = Wording("{question}" + SHORT, max_new_tokens=16)

VQAV2 = DataTask(
    name="vqav2",
    dimension="visual question answering",
    summary="ten people's short answers about photographs",
    metric=SOFT_ACCURACY,
    chance=0.0,
    kind="vqa",
    files=parquet("validation", _COLUMNS),
    hub=Hub("lmms-lab-encoder/VQAv2", "validation", _COLUMNS),
    where="https://huggingface.co/datasets/lmms-lab-encoder/VQAv2",
    size="214,354 questions, 34 GB",
    wordings={"lmms": _SHORT, **kit_words(), "llava": Wording(_SHORT.text)},
)
