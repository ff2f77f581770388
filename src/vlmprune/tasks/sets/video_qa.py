"""MSVD-QA and MSRVTT-QA (Xu et al., ACM MM 2017) and TGIF-QA's FrameQA (Jang et al., CVPR 2017, arXiv 1704.04497): a
word about a short clip.

The layout is Video-LLaVA's `GPT_Zero_Shot_QA`, questions in one file and answers in another; for TGIF-QA the authors'
table, too. Papers let GPT-3.5 judge the replies, by yes or no and from 0 to 5. The tasks named `-exact` need no judge:
the reply must be the answer, so their figures are not the papers'. Not verified offline: the columns.
"""

from dataclasses import replace

from vlmprune.data.columns import Columns
from vlmprune.data.rows import LINE
from vlmprune.data.source import Files
from vlmprune.scoring.metrics import ACCURACY, JUDGED_ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import Joined, set_from
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import SHORT

# Video-LLaVA's scripts ask the bare question; the toolkits do not have these sets.
_PROTOCOLS = ("llava", "lmms", "vlmevalkit")


def _zero_shot(ending: str, pictures: str) -> tuple[Files, ...]:
    named = set_from("_video", lambda row: f"{row['video_name']}{ending}")
    columns = Columns(video="_video", pictures="", id="question_id", group="video_name", adapt=named)
    return (Joined(("test_q.json", "test_a.json"), columns, pictures=pictures, telling=False),)


def _task(name: str, folder: str, summary: str, files: tuple[Files, ...], where: str, size: str) -> DataTask:
    return DataTask(
        name=name,
        dimension="video",
        summary=f"{summary}, scored by a judge",
        metric=JUDGED_ACCURACY,
        chance=0.0,
        max_new_tokens=1024,
        kind="judged-video",
        judged=True,
        files=files,
        folder=folder,
        where=where,
        size=size,
        wordings=dict.fromkeys(_PROTOCOLS, Wording(max_new_tokens=1024)),
    )


def _exact(task: DataTask) -> DataTask:
    return replace(
        task,
        name=f"{task.name}-exact",
        summary=f"{task.summary.partition(',')[0]}, the reply must be the answer",
        metric=ACCURACY,
        max_new_tokens=16,
        kind="exact",
        judged=False,
        wordings=dict.fromkeys(_PROTOCOLS, Wording("{question}" + SHORT, max_new_tokens=16)),
    )


_WHERE = "https://github.com/PKU-YuanGroup/Video-LLaVA (GPT_Zero_Shot_QA)"
_TGIF = Columns(
    video="_video",
    pictures="",
    id=LINE,
    group="gif_name",
    adapt=set_from("_video", lambda row: f"{row['gif_name']}.gif"),
)

MSVD_QA = _task(
    "msvd-qa",
    "MSVD_Zero_Shot_QA",
    "a word about a clip",
    _zero_shot(".avi", "videos"),
    _WHERE,
    "13,157 questions, 1.7 GB",
)
MSRVTT_QA = _task(
    "msrvtt-qa",
    "MSRVTT_Zero_Shot_QA",
    "a word about a clip with more happening",
    _zero_shot(".mp4", "videos/all"),
    _WHERE,
    "72,821 questions, 6 GB",
)
TGIF_QA = _task(
    "tgif-qa",
    "TGIF_Zero_Shot_QA",
    "FrameQA: a word about an animated picture",
    (*_zero_shot(".mp4", "mp4"), Files(("Test_frameqa_question.csv",), _TGIF, pictures="gifs")),
    f"{_WHERE} or https://github.com/YunseokJANG/tgif-qa",
    "13,691 questions, 20 GB of clips",
)
MSVD_QA_EXACT, MSRVTT_QA_EXACT, TGIF_QA_EXACT = (_exact(task) for task in (MSVD_QA, MSRVTT_QA, TGIF_QA))
