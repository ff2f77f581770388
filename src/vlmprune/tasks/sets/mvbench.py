"""MVBench (Li et al., CVPR 2024, arXiv 2311.17005): twenty skills of video understanding, 200 questions each.

Videos are read from the folders of the hub's archives; of questions about a part of a video, from the cut pieces that
lmms-eval reads. Not verified offline: that the archives have these pieces. The frames of "episodic reasoning" are read
where they have been made into a video.
"""

from pathlib import Path

from vlmprune.data.cells import TEXT
from vlmprune.data.columns import Columns
from vlmprune.data.rows import FILE, LINE
from vlmprune.data.source import Files
from vlmprune.data.video import Clip
from vlmprune.scoring.metrics import ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import set_from
from vlmprune.tasks.wording import Wording

_FOLDERS = {
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
_COLUMNS = Columns(
    pictures="",
    video="_video",
    options="candidates",
    named=TEXT,
    id=(FILE, LINE),
    group="video",
    category=FILE,
    adapt=set_from("_video", lambda row: f"{_FOLDERS[row[FILE]]}/{row['video']}"),
)
_WATCH = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question."
)

MVBENCH = DataTask(
    name="mvbench",
    dimension="video",
    summary="twenty skills, three to five options",
    metric=ACCURACY,
    chance=27.3,  # the authors' figure for guessing
    kind="option",
    files=(Files(("json/*.json",), _COLUMNS, pictures="../video"),),
    where="https://huggingface.co/datasets/OpenGVLab/MVBench",
    size="4,000 questions, 20 GB",
    clip=Clip(Path(), frames=8),
    wordings={
        "lmms": Wording(
            "Question:{question}\nOption:\n{options}\nOnly give the best option.\n",
            option="({letter}) {text}",
            max_new_tokens=16,
        ),
        "vlmevalkit": Wording(
            f"\n{_WATCH}\n\nQuestion: {{question}}\nOptions:\n{{options}}\nOnly give the best option.\nBest option:(",
            option="({letter}) {text}",
        ),
        "vlmevalkit/internvl": Wording(
            f"\n{_WATCH}\n\nQuestion: {{question}}\nOptions:\n{{options}}\nOnly give the best option.",
            option="({letter}) {text}",
        ),
        "llava": Wording("{question}\n{options}\nAnswer with the option's letter from the given choices directly."),
    },
)
