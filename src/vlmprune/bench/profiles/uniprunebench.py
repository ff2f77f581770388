"""UniPruneBench (arXiv 2511.02650): accuracy tables 1, 2, 3, 5, 6 and 7.

VLMEvalKit, batch 1, methods inside the LLM at layer 2, Qwen's pictures between 256 and 1280 x 28 x 28 pixels. Its
average is the mean of the figures: MME's total / 28, POPE's F1, HallusionBench's mean of three. The methods are as its
code has them (`compat=uniprune`), which is not always what their authors meant.
"""

from dataclasses import replace

from vlmprune.bench.profiles.profile import ABS, Profile
from vlmprune.bench.protocols import Pixels

_SHARES = (0.333, 0.222, 0.111)
_NINE = ("mme", "mmbench", "seedbench-2-plus", "scienceqa", "pope", "hallusionbench", "mathvista", "mathvision-mini")
_JUDGE = "MIA-Bench is scored by a judge (--judge); without one it is not measured and not in the average."
_MATH = (
    "Its MATH-Vision cells are of 304 questions in tables 2, 5 and 6, and of 3,040 in the pruned rows of table 3; "
    "some are scored without a judge. Here they are of 304, by rules. MathVista is by rules, too."
)
_SWAPPED = "Its columns MathVista and Math-V are swapped."
_INSIDE = ("random(compat=uniprune)@2", "fastv(compat=uniprune)@2")

TABLE1 = Profile(
    name="uniprunebench:table1",
    source="UniPruneBench, table 1, LLaVA-1.5-7B",
    models=("llava-hf/llava-1.5-7b-hf",),
    methods=(
        "random",
        "vtw:0.333",
        "vtw:0.222",
        "vtw:0.111",
        "prumerge",
        "fastv(average=True)@2",
        "divprune",
        "vispruner",
        "dart@2",
        "mustdrop",
        "sparsevlm",
    ),
    keeps=(192, 128, 64),
    tasks=("mme", "mmbench-cn", "mmbench", "seedbench-2-plus", "ocrbench", "scienceqa", "pope"),
    protocol="vlmevalkit",
    mean=ABS,
    scale="with MME as its total / 28",
    notes=(
        "It prints one block twice, under 192 and 128 tokens; the block above the label 192 is probably that of 192.",
        "Its averages of Random are wrong: its cells give 49.79, 48.63 and 41.99.",
        "Its 48.1 of the unpruned model's MME fits perception alone, and not the total.",
        "The layers of VTW are not in the paper: here it shows the image to so large a share of them.",
    ),
)
TABLE2 = replace(
    TABLE1,
    name="uniprunebench:table2",
    source="UniPruneBench, table 2, InternVL3-8B",
    models=("OpenGVLab/InternVL3-8B-hf",),
    methods=("random", *_INSIDE, "divprune", "gprune(compat=uniprune)"),
    keeps=_SHARES,
    tasks=(*_NINE, "mia-bench"),
    notes=(
        _JUDGE,
        _MATH,
        _SWAPPED,
        "Its average of the unpruned model, 70.02, is not that of its cells, 72.24.",
    ),
)
TABLE3 = replace(
    TABLE2,
    name="uniprunebench:table3",
    source="UniPruneBench, table 3, Qwen2.5-VL-7B",
    models=("Qwen/Qwen2.5-VL-7B-Instruct",),
    methods=(*TABLE2.methods, "dart(image_pivots=10, text_pivots=5, compat=uniprune)@2"),
    tasks=(*_NINE[:3], "ocrbench", *_NINE[3:], "mia-bench"),
    pixels=Pixels(256 * 28**2, 1280 * 28**2),
    notes=(_JUDGE, _MATH),
)
TABLE5 = replace(
    TABLE2,
    name="uniprunebench:table5",
    source="UniPruneBench, table 5, InternVL3-8B: one stage of 11.1 % or two of 33.3 %",
    methods=(
        *TABLE2.methods,
        *(
            f"{before}:0.333 > {inside}:0.333"
            for inside in _INSIDE
            for before in ("random", "divprune", "gprune(compat=uniprune)")
        ),
    ),
    keeps=(0.111,),
    notes=(
        *TABLE2.notes,
        "Its claim that one stage beats every pair rests on Math-Vision: without it DivPrune with FastV leads.",
    ),
)
TABLE6 = replace(
    TABLE2,
    name="uniprunebench:table6",
    source="UniPruneBench, table 6, InternVL3-1B",
    models=("OpenGVLab/InternVL3-1B-hf",),
    notes=(_JUDGE, _MATH, _SWAPPED),
)
TABLE7 = replace(
    TABLE3,
    name="uniprunebench:table7",
    source="UniPruneBench, table 7, Qwen2.5-VL-3B",
    models=("Qwen/Qwen2.5-VL-3B-Instruct",),
    notes=(_JUDGE, _MATH, "Its blocks of 22.2 % and 11.1 % have rows and labels out of step."),
)
TABLES = (TABLE1, TABLE2, TABLE3, TABLE5, TABLE6, TABLE7)
