"""MathVista (Lu et al., ICLR 2024, arXiv 2310.02255), testmini: mathematics in figures, charts and photographs.

The hint that says the form of the answer follows from its type, as in the authors' queries, which VLMEvalKit's TSV has
as its questions. lmms-eval asks in three ways; these are the words of `mathvista_testmini_cot`. Both toolkits let a
language model find the answer in the reply; `mathvista` finds it by rules, `mathvista-judged` asks a judge. Not
verified offline: the columns of the TSV.
"""

from dataclasses import replace
from typing import Any

from vlmprune.data.columns import Columns
from vlmprune.data.rows import Row
from vlmprune.data.source import Files, Hub
from vlmprune.scoring.metrics import ACCURACY, JUDGED_ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, parquet, set_from, then
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import CHOICES, kit_words

_HINTS = {
    "text": "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at "
    "the end.",
    "float1": "Please answer the question requiring a floating-point number with one decimal place and provide the "
    "final value, e.g., 1.2, 1.3, 1.4, at the end.",
    "float2": "Please answer the question requiring a floating-point number with two decimal places and provide the "
    "final value, e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "Please answer the question requiring a Python list as an answer and provide the final list, e.g., "
    "[1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}


def _number(value: Any) -> str:
    """A precision as text; JSON has 1, a table with gaps 1.0."""
    return str(int(float(value))) if value not in (None, "") and value == value else ""


def _hint(row: Row) -> str:
    kind = row["answer_type"]
    return _HINTS[kind + _number(row["precision"]) if kind == "float" else kind]


def _bare(row: Row) -> str:
    """The question of a query: "Hint: ...\\nQuestion: ...\\nChoices:\\n(A) ..."."""
    return row["question"].partition("Question: ")[2].partition("\nChoices:")[0] or row["question"]


_COMMON = then(
    set_from("precision", lambda row: _number(row.get("precision"))),
    set_from("_hint", _hint),
)
_NATIVE = Columns(
    pictures="image",
    options="choices",
    letters=False,
    id="pid",
    category="answer_type",
    hint="_hint",
    facts=("question_type", "answer_type", "precision"),
    adapt=then(
        _COMMON,
        set_from("question", lambda row: row["question"] + (f" (Unit: {row['unit']})" if row.get("unit") else "")),
    ),
)
_HUB = replace(_NATIVE, pictures="decoded_image")
_KIT = replace(_NATIVE, id="index", adapt=then(_COMMON, set_from("question", _bare)))
_LMMS = Wording(
    "Question: {question}\nHint: {hint}",
    with_options="Question: {question}" + CHOICES + "\nHint: {hint}",
    option="({letter}) {text}",
    max_new_tokens=16384,
)

MATHVISTA = DataTask(
    name="mathvista",
    dimension="mathematical reasoning",
    summary="mathematics in figures, charts and photographs",
    metric=ACCURACY,
    chance=17.9,  # the authors' figure for guessing
    max_new_tokens=1024,
    kind="mathvista",
    files=(
        kit_tsv("MathVista_MINI", _KIT),
        Files(("testmini.json",), _NATIVE),
        Files(("data/testmini.json",), _NATIVE, pictures=".."),
        *parquet("testmini", _HUB),
    ),
    hub=Hub("AI4Math/MathVista", "testmini", _HUB),
    where="https://huggingface.co/datasets/AI4Math/MathVista",
    size="1,000 questions, 150 MB",
    wordings={
        "lmms": _LMMS,
        **kit_words("", "", query="Hint: {hint}\nQuestion: {question}", choices=CHOICES),
        "llava": Wording(),
    },
)
MATHVISTA_JUDGED = replace(
    MATHVISTA,
    name="mathvista-judged",
    summary="MathVista, scored by a judge",
    metric=JUDGED_ACCURACY,
    kind="judged-math",
    judged=True,
    folder="mathvista",
)
