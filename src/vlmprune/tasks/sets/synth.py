"""The generated benchmark: six abilities of one picture, and what else a model is asked to look at."""

from vlmprune.scoring.metrics import ACCURACY, BOX_ACCURACY, F1, MME
from vlmprune.tasks import drawing
from vlmprune.tasks.generated import GeneratedTask, guess

SYNTH_MME = GeneratedTask(
    name="synth-mme",
    version=2,
    dimension="comprehensive evaluation",
    summary="yes/no pairs about colours and places; a pair with both right counts extra",
    metric=MME,
    chance=37.5,  # half of the questions and a quarter of the pairs
    grouped=True,
)
SYNTH_OCR = GeneratedTask(
    name="synth-ocr",
    version=2,
    dimension="OCR",
    summary="digits on a plate, a single letter",
    metric=ACCURACY,
    chance=guess("synth-ocr"),
)
SYNTH_MATH = GeneratedTask(
    name="synth-math",
    version=2,
    dimension="mathematical reasoning",
    summary="counting, comparing a count",
    metric=ACCURACY,
    chance=guess("synth-math"),
)
SYNTH_CHOICE = GeneratedTask(
    name="synth-choice",
    version=2,
    dimension="multidisciplinary knowledge",
    summary="multiple choice of four",
    metric=ACCURACY,
    chance=guess("synth-choice"),
)
SYNTH_POPE = GeneratedTask(
    name="synth-pope",
    version=2,
    dimension="hallucination",
    summary="is there such an object; adversarial negatives",
    metric=F1,
    chance=200 / 3,
)
SYNTH_INSTRUCT = GeneratedTask(
    name="synth-instruct",
    version=2,
    dimension="instruction following",
    summary="answers in the asked form, lookups in a word or two",
    metric=ACCURACY,
    chance=guess("synth-instruct"),
)
SYNTH_GROUND = GeneratedTask(
    name="synth-ground",
    dimension="grounding",
    summary="the box of an object, right at an IoU of 0.5",
    metric=BOX_ACCURACY,
    chance=guess("synth-ground"),
    tabled=False,
)
SYNTH_DOCUMENT = GeneratedTask(
    name="synth-document",
    dimension="documents",
    summary="small text on a page: the number at a letter, the letter of a number",
    metric=ACCURACY,
    chance=guess("synth-document"),
    drawer=drawing.pages,
    default=False,
    tabled=False,
)
SYNTH_SCREEN = GeneratedTask(
    name="synth-screen",
    dimension="screenshots",
    summary="a button's colour, letter or box",
    metric=ACCURACY,
    chance=guess("synth-screen"),
    drawer=drawing.screens,
    tabled=False,
)
SYNTH_IMAGES = GeneratedTask(
    name="synth-images",
    dimension="several images",
    summary="two pictures: which of them has an object, a colour or a count in one of them",
    metric=ACCURACY,
    chance=guess("synth-images"),
    drawer=drawing.pairs,
    tabled=False,
)
SYNTH_VIDEO = GeneratedTask(
    name="synth-video",
    dimension="video",
    summary="eight frames: what moves, changes, appears or comes first, how many appear, a number shown for a time",
    metric=ACCURACY,
    chance=guess("synth-video"),
    drawer=drawing.clips,
    default=False,
    tabled=False,
)
