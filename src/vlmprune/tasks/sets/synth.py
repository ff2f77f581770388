"""The generated benchmark."""

from vlmprune.scoring.metrics import ACCURACY, F1, MME
from vlmprune.tasks.generated import GeneratedTask, guess

SYNTH_MME = GeneratedTask(
    name="synth-mme",
    dimension="comprehensive evaluation",
    summary="yes/no pairs about colours and places; a pair with both right counts extra",
    metric=MME,
    chance=37.5,  # half of the questions and a quarter of the pairs
    grouped=True,
)
SYNTH_OCR = GeneratedTask(
    name="synth-ocr",
    dimension="OCR",
    summary="digits on a plate, a single letter",
    metric=ACCURACY,
    chance=guess("synth-ocr"),
)
SYNTH_MATH = GeneratedTask(
    name="synth-math",
    dimension="mathematical reasoning",
    summary="counting, comparing a count",
    metric=ACCURACY,
    chance=guess("synth-math"),
)
SYNTH_CHOICE = GeneratedTask(
    name="synth-choice",
    dimension="multidisciplinary knowledge",
    summary="multiple choice of four",
    metric=ACCURACY,
    chance=guess("synth-choice"),
)
SYNTH_POPE = GeneratedTask(
    name="synth-pope",
    dimension="hallucination",
    summary="is there such an object; adversarial negatives",
    metric=F1,
    chance=200 / 3,
)
SYNTH_INSTRUCT = GeneratedTask(
    name="synth-instruct",
    dimension="instruction following",
    summary="answers in the asked form, lookups in a word or two",
    metric=ACCURACY,
    chance=guess("synth-instruct"),
)
