"""MATH-Vision (Wang et al., NeurIPS 2024 Datasets and Benchmarks, arXiv 2402.14804): competition problems."""

from vlmprune.data.columns import Columns
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.wording import Wording

_COLUMNS = Columns(id="id", answers="answer", options="options", category="subject", letters=False)

MATHVISION = DataTask(
    name="mathvision",
    dimension="mathematical reasoning",
    summary="3,040 competition problems, free answers and five options",
    metric=ACCURACY,
    chance=0.0,
    kind="words",
    files=(Files(("test.jsonl",), _COLUMNS), Files(("data/test.jsonl",), _COLUMNS, pictures="..")),
    hub=Hub("MathLLMs/MathVision", "test", _COLUMNS),
    where="https://github.com/mathllm/MATH-V",
    size="3,040 questions, 92 MB",
    wordings={"lmms": Wording(max_new_tokens=1024)},
)
