"""MMBench (Liu et al., ECCV 2024, arXiv 2307.06281), dev split, English and Chinese: each question is asked once for
each rotation of its options, and counts where all are right.

Not verified offline: the columns on the hub.
"""

from vlmprune.data.cells import LETTER
from vlmprune.data.columns import Columns
from vlmprune.data.source import Hub
from vlmprune.scoring.metrics import CIRCULAR
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.layouts import OPTIONS, kit_tsv, parquet, set_from, then, without_nan
from vlmprune.tasks.wording import Wording
from vlmprune.tasks.words import CHOICE, DIRECTLY, DIRECTLY_CN, Wordings, kit_choice

_OPTIONS = OPTIONS[:4]
_COLUMNS = Columns(
    options=_OPTIONS,
    named=LETTER,
    id="index",
    group="_group",
    category="category",
    hint="hint",
    # the rotations of a question have its index and millions more
    adapt=then(without_nan("hint", *_OPTIONS), set_from("_group", lambda row: int(row["index"]) % 1_000_000)),
)
_NATIVE = ("mmbench_dev_20230712", "mmbench_dev_cn_20231003")  # the files that LLaVA's scripts read


def _lmms(introduced: str, letter: str, length: int) -> Wordings:
    text = f"{{hint}} {{question}} {introduced}\n{{options}}\n\n{letter}"
    return {"lmms": Wording(text, max_new_tokens=length)}


def _task(name: str, language: str, code: str, native: str, wordings: Wordings) -> DataTask:
    return DataTask(
        name=name,
        dimension="comprehensive evaluation",
        summary=f"multiple choice in {language}, every rotation of the options",
        metric=CIRCULAR,
        chance=100 * 0.25**4,
        grouped=True,
        kind="option",
        files=(
            kit_tsv(f"MMBench_DEV_{code.upper()}", _COLUMNS),
            kit_tsv(native, _COLUMNS),
            *parquet("dev", _COLUMNS, config=code)[:1],  # "data/dev-*" would be either language
        ),
        hub=Hub("lmms-lab-encoder/MMBench", "dev", _COLUMNS, config=code),
        where=f"https://opencompass.openxlab.space/utils/VLMEval/MMBench_DEV_{code.upper()}.tsv",
        size="4,329 questions, 150 MB",
        wordings=wordings,
    )


MMBENCH = _task(
    "mmbench",
    "English",
    "en",
    _NATIVE[0],
    {
        **_lmms("There are several options:", DIRECTLY.strip(), 1024),
        **kit_choice(),
        "llava": Wording(CHOICE.text, max_new_tokens=1024),
    },
)
MMBENCH_CN = _task(
    "mmbench-cn",
    "Chinese",
    "cn",
    _NATIVE[1],
    {
        **_lmms("有如下几个选项：", "请直接使用所提供的选项字母作为答案回答。", 256),
        **kit_choice(DIRECTLY_CN, qwen=DIRECTLY_CN),
        "llava": Wording("{hint}\n{question}\n{options}" + DIRECTLY_CN, max_new_tokens=1024),
    },
)
