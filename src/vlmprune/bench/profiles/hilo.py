"""Hi-Lo Prune's supplement: table 9 (fusion strength) and table 7 (video).

The paper follows "the official Qwen-VL evaluation code", whose words are not published with it; these are VLMEvalKit's,
which Qwen's reports use. It prints no average, and MME as the total.
"""

from dataclasses import replace

from vlmprune.bench.profiles.profile import Profile

_WORDS = "The paper's words are those of Qwen's own evaluation code, which it does not print; these are VLMEvalKit's."
_JUDGE = "Replies are scored by a judge (--judge); without one they are not measured."

TABLE9 = Profile(
    name="hilo:table9",
    source="Hi-Lo Prune's supplement, table 9 (fusion strength), Qwen3-VL-8B at 20 %",
    models=("Qwen/Qwen3-VL-8B-Instruct",),
    methods=tuple(f"hilo(lambda_={strength})" for strength in (0.1, 0.3, 0.5, 1.0)),
    keeps=(0.2,),
    tasks=("scienceqa", "chartqa", "pope", "textvqa", "mme", "mmbench", "mmbench-cn"),
    protocol="vlmevalkit",
    notes=(_WORDS, "Its MME is the total of 2,800 points: 28 times the metric here."),
)
TABLE7 = replace(
    TABLE9,
    name="hilo:table7",
    source="Hi-Lo Prune's supplement, table 7 (video), Video-LLaVA-7B at 10 %",
    models=("LanguageBind/Video-LLaVA-7B-hf",),
    methods=("fastv@2", "dart@2", "divprune", "cdpruner", "hilo"),
    keeps=(0.1,),
    tasks=("msrvtt-qa", "msvd-qa", "tgif-qa"),
    protocol="llava",
    notes=(_JUDGE,),
)
TABLE7_QWEN = replace(
    TABLE7,
    name="hilo:table7-qwen",
    source="Hi-Lo Prune's supplement, table 7 (video), Qwen3-VL-8B at 10 %",
    models=("Qwen/Qwen3-VL-8B-Instruct",),
    protocol="vlmevalkit",
    notes=(_WORDS, _JUDGE),
)
TABLES = (TABLE9, TABLE7, TABLE7_QWEN)
