"""GQA (Hudson and Manning, CVPR 2019, arXiv 1902.09506), testdev balanced: one word about objects and relations.

On the hub the pictures stand in a data set of their own, so that it cannot be streamed in order. Not verified offline:
the columns of the TSV.
"""

from vlmprune.data.columns import Columns
from vlmprune.data.source import Files
from vlmprune.scoring.metrics import ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, set_from
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import SHORT, kit_words

_NATIVE = Columns(group="imageId", adapt=set_from("image", lambda row: f"{row['imageId']}.jpg"))
_SHORT = Wording("{question}" + SHORT, max_new_tokens=16)

GQA = DataTask(
    name="gqa",
    dimension="visual question answering",
    summary="a word about objects and relations",
    metric=ACCURACY,
    chance=0.0,
    kind="exact",
    files=(
        kit_tsv("GQA_TestDev_Balanced", Columns(id="index")),
        Files(("testdev_balanced_questions.json",), _NATIVE, pictures="images"),
        Files(("data/testdev_balanced_questions.json",), _NATIVE, pictures="images"),
    ),
    where="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    size="12,578 questions, 50 MB of the 20 GB of pictures",
    wordings={"lmms": _SHORT, **kit_words(), "llava": Wording(_SHORT.text)},
)
