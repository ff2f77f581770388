"""MIA-Bench (Qian et al., ICLR 2025, arXiv 2407.01509): instructions of several parts, each judged by a language model.

The authors' file names pictures by address; they are read from a folder `images` beside it. Not verified offline: the
columns on the hub and of the TSV.
"""

from dataclasses import replace

from vlmprune.data.columns import Columns
from vlmprune.data.rows import LINE
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import JUDGED_SCORE
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, parquet, set_from
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import kit_words

_HUB = Columns(question="instruction", answers="components", id=LINE, category="type", facts=("component_weight",))
_NATIVE = replace(_HUB, adapt=set_from("image", lambda row: row["image"].rpartition("/")[2]))
_KIT = replace(_HUB, question="question", id="index", category="")

MIA = DataTask(
    name="mia-bench",
    dimension="instruction following",
    summary="instructions of several parts, scored by a judge",
    metric=JUDGED_SCORE,
    chance=0.0,
    max_new_tokens=512,
    kind="judged-mia",
    judged=True,
    files=(
        kit_tsv("MIA-Bench", _KIT),
        kit_tsv("Mia-Bench", _KIT),
        Files(("instruction_benchmark_all.json",), _NATIVE, pictures="images"),
        *parquet("test", _HUB),
    ),
    hub=Hub("lmms-lab-encoder/MIA-Bench", "test", _HUB),
    where="https://opencompass.openxlab.space/utils/VLMEval/Mia-Bench.tsv",
    size="400 instructions, 100 MB",
    wordings={
        "lmms": Wording(max_new_tokens=512),
        **kit_words("", ""),
        "llava": Wording(),
    },
)
