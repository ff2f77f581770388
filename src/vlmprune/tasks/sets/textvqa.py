"""TextVQA (Singh et al., CVPR 2019, arXiv 1904.08920), validation: what is written in photographs.

LLaVA's scripts write what an OCR program has read into the prompt, and the toolkits do not; figures of the two are
not comparable. VLMEvalKit's TSV does not have these words, so that `llava` needs the data set of the hub. Not verified
offline: the columns.
"""

from vlmprune.data.columns import Columns
from vlmprune.data.source import Hub
from vlmprune.scoring.metrics import SOFT_ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import kit_tsv, parquet, set_from
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import SHORT, kit_words

_KIT = Columns(id="index")
_HUB = Columns(
    answers="answers",
    id="question_id",
    group="image_id",
    hint="_ocr",
    adapt=set_from("_ocr", lambda row: "Reference OCR token: " + ", ".join(row["ocr_tokens"])),
)

TEXTVQA = DataTask(
    name="textvqa",
    dimension="OCR",
    summary="what is written in photographs, ten people's answers",
    metric=SOFT_ACCURACY,
    chance=0.0,
    kind="vqa",
    files=(*parquet("validation", _HUB), kit_tsv("TextVQA_VAL", _KIT)),
    hub=Hub("lmms-lab-encoder/textvqa", "validation", _HUB),
    where="https://huggingface.co/datasets/lmms-lab-encoder/textvqa",
    size="5,000 questions, 1 GB",
    wordings={
        "short": Wording("{question}\nAnswer with a single word or phrase."),
        "lmms": Wording("{question}" + SHORT, capitalized=True),
        **kit_words(),
        "llava": Wording("{question}\n{hint}" + SHORT, needs_hint=True),
    },
)
