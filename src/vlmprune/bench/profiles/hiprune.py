"""HiPrune (arXiv 2508.00553): accuracy tables 2, 3, 4, 8 and 9, and the part of table 5 that has options.

Most tasks are asked by lmms-eval; in table 2 MMBench, MMBench-CN, TextVQA and VQAv2 by LLaVA's scripts. The average is
the mean of the ratios, with MME as its total, over the columns that a row has.
"""

from dataclasses import replace

from vlmprune.bench.profiles.profile import REL, Profile

_LLAVA = "llava-hf/llava-1.5-{}-hf"
_NEXT = "llava-hf/llava-v1.6-vicuna-{}-hf"
_CLIP = "openai/clip-vit-large-patch14-336"
_MIXED = dict.fromkeys(("mmbench", "mmbench-cn", "textvqa", "vqav2"), "llava")
_SHARES = (0.333, 0.222, 0.111)
_VIZWIZ = (
    "The paper's VizWiz baseline, 50.0, is quoted from a server's test split and its own runs are not, so that ratios "
    "reach 109 %; here both are of the validation split."
)
_VQAV2 = "VQAv2 is asked on its validation split: test-dev is scored by a server alone."
_BUDGETS = (
    "FastV and PyramidDrop keep so many tokens per layer on average; the paper does not say what it did for FastV."
)
_TASKS = ("gqa", "mmbench", "mmbench-cn", "mme", "pope", "scienceqa", "vqav2", "textvqa", "vizwiz")
_FIVE = ("mmbench", "mmbench-cn", "pope", "scienceqa", "vizwiz")

TABLE2 = Profile(
    name="hiprune:table2",
    source="HiPrune, table 2, LLaVA-1.5-7B",
    models=(_LLAVA.format("7b"),),
    methods=(
        "tome(inside=True)",
        "fastv(average=True)@2",
        "hired",
        "trim",
        "pyramiddrop(average=True)",
        "visionzip",
        "sparsevlm",
        "hiprune",
    ),
    keeps=(192, 128, 64),
    tasks=_TASKS,
    protocol="lmms",
    protocols=_MIXED,
    text_tower=_CLIP,
    mean=REL,
    scale="with MME as its total",
    notes=(
        _VIZWIZ,
        _VQAV2,
        _BUDGETS,
        "Its averages are over 7, 8 or 9 columns, whatever a row has; ours are over all.",
        "PyramidDrop's 69.2 of VQAv2 at 64 tokens is its ScienceQA, probably a copied cell.",
    ),
)
TABLE3 = replace(
    TABLE2,
    name="hiprune:table3",
    source="HiPrune, table 3, LLaVA-NeXT-7B",
    models=(_NEXT.format("7b"),),
    methods=("fastv@2", "hired", "trim", "pyramiddrop(average=True)", "visionzip", "sparsevlm", "hiprune"),
    keeps=(640, 320, 160),
    tasks=_FIVE,
    protocols={},
    scale="",
    notes=("The other methods' rows are copied from another paper, whose protocol is not lmms-eval's.", _VIZWIZ),
)
TABLE4 = replace(
    TABLE3,
    name="hiprune:table4",
    source="HiPrune, table 4, Qwen2.5-VL-3B",
    models=("Qwen/Qwen2.5-VL-3B-Instruct",),
    methods=("fastv@2", "visionzip", "hiprune"),
    keeps=_SHARES,
    text_tower=None,
    notes=(),
)
TABLE5 = replace(
    TABLE2,
    name="hiprune:table5",
    source="HiPrune, table 5 (ablation), LLaVA-1.5-7B at 192 tokens",
    methods=("hiprune", "hiprune(alpha=0.0)"),
    keeps=(192,),
    tasks=("gqa", "mme", "pope", "vizwiz"),
    protocols={},
    notes=(
        "Its base is the starred row, not the unpruned model.",
        "Of its rows only the default and the one without anchors and buffers are options here.",
    ),
)
TABLE8 = replace(
    TABLE2,
    name="hiprune:table8",
    source="HiPrune, table 8, LLaVA-1.5-13B",
    models=(_LLAVA.format("13b"),),
    methods=("hiprune",),
    mean="",
    scale="",
    notes=(_VQAV2, "The paper does not say by what its 13B rows are asked; these are the words of its table 2."),
)
TABLE8_NEXT = replace(
    TABLE8,
    name="hiprune:table8-next",
    source="HiPrune, table 8, LLaVA-NeXT-13B",
    models=(_NEXT.format("13b"),),
    keeps=(640, 320, 160),
    protocols={},
    notes=(_VQAV2,),
)
TABLE9 = replace(
    TABLE4,
    name="hiprune:table9",
    source="HiPrune, table 9, Qwen2.5-VL-7B",
    models=("Qwen/Qwen2.5-VL-7B-Instruct",),
    methods=("hiprune",),
    tasks=tuple(task for task in _TASKS if task != "vqav2"),
    mean="",
)
TABLES = (TABLE2, TABLE3, TABLE4, TABLE5, TABLE8, TABLE8_NEXT, TABLE9)
