"""MATH-Vision (Wang et al., NeurIPS 2024 Datasets and Benchmarks, arXiv 2402.14804): competition problems.

`mathvision-mini` has the 304 of testmini; a figure without a name is often one of these, so the name is always given.
A question marks its pictures, but all of them are one file.

Not verified offline: how VLMEvalKit's TSV writes the options into its questions; under its protocol they are written as
MathVista's are.
"""

from dataclasses import replace

from vlmprune.data.columns import Columns
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import ACCURACY, JUDGED_ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import parquet
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import CHOICES, DIRECTLY, kit_words

_COLUMNS = Columns(
    id="id",
    options="options",
    letters=False,
    category="subject",
)
_HUB = replace(_COLUMNS, pictures="decoded_image")
_BOXED = 'Please solve the problem step by step and put your answer in one "\\boxed{}".'
_LETTER = "\nAnswer the question with the option's letter from the given choices directly."


def _files(split: str) -> tuple[Files, ...]:
    return (
        Files((f"{split}.jsonl",), _COLUMNS),
        Files((f"data/{split}.jsonl",), _COLUMNS, pictures=".."),
        *parquet(split, _HUB),
    )


MATHVISION = DataTask(
    name="mathvision",
    dimension="mathematical reasoning",
    summary="competition problems, free answers and five options",
    metric=ACCURACY,
    chance=7.2,  # the authors' figure for guessing
    max_new_tokens=1024,
    kind="mathvision",
    files=_files("test"),
    hub=Hub("MathLLMs/MathVision", "test", _HUB),
    where="https://github.com/mathllm/MATH-V",
    size="3,040 questions, 92 MB",
    wordings={
        "lmms": Wording(
            _BOXED + "{question}",
            with_options=_BOXED + "{question}\nChoices: {options}" + _LETTER,
            interleaved=False,
            max_new_tokens=16384,
        ),
        **kit_words("", "", choices=CHOICES),
        "llava": Wording("{question}", with_options="{question}\n{options}" + DIRECTLY),
    },
)
MATHVISION_MINI = replace(
    MATHVISION,
    name="mathvision-mini",
    summary="MATH-Vision's 304 problems of testmini",
    files=_files("testmini"),
    folder="mathvision",
    hub=Hub("MathLLMs/MathVision", "testmini", _HUB),
    size="304 questions, 9 MB",
)
MATHVISION_JUDGED = replace(
    MATHVISION,
    name="mathvision-judged",
    summary="MATH-Vision, scored by a judge",
    metric=JUDGED_ACCURACY,
    kind="judged-math",
    judged=True,
    folder="mathvision",
)
