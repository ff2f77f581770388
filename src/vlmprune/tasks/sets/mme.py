"""MME (Fu et al., arXiv 2306.13394): yes/no questions in pairs about one picture, ten categories of perception and four
of cognition.

Not verified offline: the columns on the hub and of the TSV.
"""

from dataclasses import replace

from vlmprune.data.columns import Columns
from vlmprune.data.rows import LINE
from vlmprune.data.source import Hub
from vlmprune.scoring.metrics import MME, MME_TOTAL
from vlmprune.scoring.pairs import PERCEPTION
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, lower, parquet
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import SHORT, YES_OR_NO, kit

_HUB = Columns(id=("question_id", LINE), group=("category", "question_id"), category="category", adapt=lower("answer"))
_KIT = replace(_HUB, id="index", group=("category", "image_path"))
_SHORT = Wording("{question}" + SHORT, without=YES_OR_NO)

MME_TASK = DataTask(
    name="mme",
    dimension="comprehensive evaluation",
    summary="yes/no pairs, perception and cognition",
    metric=MME_TOTAL,
    chance=37.5,  # half of the questions and a quarter of the pairs
    grouped=True,
    kind="yesno",
    files=(kit_tsv("MME", _KIT), *parquet("test", _HUB)),
    hub=Hub("lmms-lab-encoder/MME", "test", _HUB),
    where="https://opencompass.openxlab.space/utils/VLMEval/MME.tsv",
    size="2,374 questions, 1 GB",
    wordings={
        "lmms": replace(_SHORT, max_new_tokens=16),
        # without "\\n": InternVL's class keeps the question's own request and adds another
        **kit(Wording(), internvl=Wording("{question} Answer the question using a single word or phrase.")),
        "llava": _SHORT,
    },
)
MME_PERCEPTION = replace(
    MME_TASK,
    name="mme-perception",
    summary="MME's categories of perception; its points are 20 times the metric",
    metric=MME,
    size="2,114 questions of MME, 1 GB",
    folder="mme",
    only=lambda row: row.get("category") in PERCEPTION,
)
