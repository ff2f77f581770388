"""Video-MME (Fu et al., CVPR 2025, arXiv 2405.21075), without subtitles: four options about a video of any length.

Not verified offline: the columns of the parquet file.
"""

from pathlib import Path

from vlmprune.data.cells import LETTER
from vlmprune.data.columns import Columns
from vlmprune.data.rows import Row
from vlmprune.data.source import Files
from vlmprune.data.video import Clip
from vlmprune.scoring.metrics import ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import set_from, then
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import DIRECTLY


def _bare_options(row: Row) -> list[str]:
    """Options without the letters that they begin with, "A. "."""
    return [option.partition(". ")[2] or option for option in row["options"]]


_COLUMNS = Columns(
    pictures="",
    video="_video",
    options="options",
    named=LETTER,
    id="question_id",
    group="videoID",
    category="duration",
    adapt=then(set_from("options", _bare_options), set_from("_video", lambda row: f"{row['videoID']}.mp4")),
)
_SELECT = "Select the best answer to the following multiple-choice question based on the video"
_RESPOND = "Respond with only the letter (A, B, C, or D) of the correct option."

VIDEOMME = DataTask(
    name="videomme",
    dimension="video",
    summary="four options about short, medium and long videos, without subtitles",
    metric=ACCURACY,
    chance=25.0,
    kind="option",
    files=(Files(("videomme/test-*.parquet",), _COLUMNS, pictures="../data"),),
    where="https://huggingface.co/datasets/lmms-lab/Video-MME",
    size="2,700 questions, 100 GB",
    clip=Clip(Path(), frames=32),
    wordings={
        "lmms": Wording(
            f"{_SELECT} and the subtitles. {_RESPOND}\n{{question}}\n{{options}}\n" + DIRECTLY, max_new_tokens=16
        ),
        # VLMEvalKit's parts, each message's own line breaks included
        "vlmevalkit": Wording(
            f"\nThese are the frames of a video. {_SELECT}. {_RESPOND}\n\nQuestion: {{question}}\n{{options}}\nAnswer: "
        ),
        "vlmevalkit/internvl": Wording(
            f"\nThese are the frames of a video. {_SELECT}. {_RESPOND}\n\nQuestion: {{question}}\n{{options}}"
            + DIRECTLY
        ),
        "llava": Wording("{question}\n{options}" + DIRECTLY),
    },
)
