"""AutoPrune's supplement (NeurIPS 2025, arXiv 2509.23931): tables 1 to 4, asked by LLaVA's scripts.

The ratio is the mean of the ratios; MME is its perception alone in tables 1 and 4 and its total in table 3.
"""

from dataclasses import replace

from vlmprune.bench.profiles.profile import REL, Profile

_PERCEPTION = "with MME's perception alone"
_COPIED = "The rows of other methods are taken from papers, whose protocols may differ."

TABLE1 = Profile(
    name="autoprune:table1",
    source="AutoPrune's supplement, table 1, LLaVA-1.5-7B",
    models=("llava-hf/llava-1.5-7b-hf",),
    methods=(
        "tome(inside=True)",
        "fastv(average=True)@2",
        "sparsevlm",
        "prumerge+",
        "visionzip",
        "fastervlm",
        "autoprune",
    ),
    keeps=(128, 64),
    tasks=("gqa", "scienceqa", "textvqa", "pope", "mme-perception", "mmbench", "mmbench-cn"),
    protocol="llava",
    mean=REL,
    scale=_PERCEPTION,
    notes=(_COPIED,),
)
TABLE2 = replace(
    TABLE1,
    name="autoprune:table2",
    source="AutoPrune's supplement, table 2, LLaVA-1.5-7B at half of the operations",
    methods=("vtw@16", "topv@3:0.437", "autoprune:0.437"),
    tasks=("scienceqa", "mmbench", "mmbench-cn", "pope", "ocrbench"),
    mean="",
    scale="",
    notes=(
        "Its MMB(cn,en) is the mean of the two.",
        "AutoPrune's budget is that of TopV, as the paper gives operations and no tokens.",
    ),
)
TABLE3 = replace(
    TABLE1,
    name="autoprune:table3",
    source="AutoPrune's supplement, table 3, LLaVA-1.5-7B",
    methods=("pyramiddrop(average=True)", "autoprune", "autoprune(flash=True)"),
    keeps=(192, 128, 64),
    tasks=("mme", "mmbench", "scienceqa", "gqa", "textvqa"),
    scale="with MME as its total",
    notes=("Its ratios drift from its cells by up to 0.5: AutoPrune-Flash at 128 tokens is 97.09, not 96.6.",),
)
TABLE4 = replace(
    TABLE1,
    name="autoprune:table4",
    source="AutoPrune's supplement, table 4, LLaVA-1.5-13B",
    models=("llava-hf/llava-1.5-13b-hf",),
    methods=("fastv(average=True)@2", "sparsevlm", "fastervlm", "autoprune"),
    keeps=(288, 144, 58),
    tasks=("vqav2", "gqa", "textvqa", "pope", "mme-perception"),
    notes=(_COPIED, "VQAv2 is asked on its validation split: test-dev is scored by a server alone."),
)
TABLES = (TABLE1, TABLE2, TABLE3, TABLE4)
