"""ChartQA (Masry et al., Findings of ACL 2022, arXiv 2203.10244), test: values and words of charts.

Not verified offline: the columns on the hub and of the TSV.
"""

from vlmprune.data.columns import Columns
from vlmprune.data.rows import FILE, LINE
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import RELAXED_ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, parquet
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import SHORT, kit_words

_HUB = Columns(id=LINE, category="type")
_KIT = Columns(id="index", category="split")
_NATIVE = Columns(
    question="query", answers="label", pictures="imgname", id=(FILE, LINE), group="imgname", category=FILE
)
_FILES = ("test_human.json", "test_augmented.json")

CHARTQA = DataTask(
    name="chartqa",
    dimension="chart understanding",
    summary="values and words of charts; a value may be off by 5 %",
    metric=RELAXED_ACCURACY,
    chance=0.0,
    kind="relaxed",
    files=(
        kit_tsv("ChartQA_TEST", _KIT),
        Files(_FILES, _NATIVE, pictures="png"),
        Files(tuple(f"test/{name}" for name in _FILES), _NATIVE, pictures="png"),
        Files(tuple(f"ChartQA Dataset/test/{name}" for name in _FILES), _NATIVE, pictures="png"),
        *parquet("test", _HUB),
    ),
    hub=Hub("lmms-lab-encoder/ChartQA", "test", _HUB),
    where="https://github.com/vis-nlp/ChartQA",
    size="2,500 questions, 100 MB",
    wordings={
        "lmms": Wording("{question}\nAnswer the question with a single word.", max_new_tokens=16),
        **kit_words(),
        "llava": Wording("{question}" + SHORT),
    },
)
