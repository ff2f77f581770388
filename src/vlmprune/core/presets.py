"""Published settings by name: `vlmprune.prune(model, "visionzip-192")`. A preset may stand for a stage of a recipe.

A whole number in a recipe is tokens an image, whatever the image is cut into. So `visionzip-192`, 192 of the 576 tokens
of LLaVA-1.5, is 192 tokens on any model, and `visionzip-640` is 640 of the 2880 of LLaVA-NeXT, where each of five tiles
gets 128 of them. Where authors give a share, as they do for images of any size, so does the preset. Options that
authors give in tokens of one image or tile are shares here (VisionZip's 30 contextual tokens of 192 are the 10 of 64
that it has by default), so that what is right for an image is right for tiles. Counts inside the LLM hold for the model
that the source names.
"""

from __future__ import annotations

from typing import NamedTuple

from vlmprune.core.budget import Keep


class Preset(NamedTuple):
    """A published setting.

    Attributes:
        recipe: what it stands for, as a recipe string without presets.
        source: where it comes from, and for which model.
    """

    recipe: str
    source: str


Named = list[tuple[str, Preset]]


def points(recipe: str, keeps: tuple[Keep, ...], source: str, name: str = "") -> Named:
    """A preset `name-keep` for each budget; without a name, the recipe is one."""
    return [(f"{name or recipe}-{keep}", Preset(f"{recipe}:{keep}", source)) for keep in keeps]


def one(name: str, recipe: str, source: str) -> Named:
    """A preset by its name."""
    return [(name, Preset(recipe, source))]


LLAVA, NEXT, QWEN = (192, 128, 64), (640, 320, 160), (0.334, 0.223, 0.112)
HIPRUNE, UNIPRUNE, AUTOPRUNE = "HiPrune's table {}", "UniPruneBench's table {}", "AutoPrune's supplement, table {}"

BEFORE_THE_LLM = (
    points("random", LLAVA, f"{UNIPRUNE.format(1)}, LLaVA-1.5"),
    points("divprune", (0.098,), "DivPrune's scripts, LLaVA-1.5 and LLaVA-NeXT"),
    points("divprune", LLAVA, f"{UNIPRUNE.format(1)}, LLaVA-1.5"),
    points("fastervlm", (288, 144, 58, 29), "FasterVLM's README, LLaVA-1.5: 50, 75, 90 and 95 % pruned"),
    points("fastervlm", (128, 64), f"{AUTOPRUNE.format(1)}, LLaVA-1.5"),
    points("fastervlm", (1440, 720, 290, 145), "FasterVLM's README, LLaVA-NeXT: 288, 144, 58 and 29 a tile"),
    points("vispruner", (192,), f"{UNIPRUNE.format(1)}, LLaVA-1.5; the share of important tokens is not published"),
    points("vispruner", (128,), "VisPruner's README, LLaVA-1.5"),
    points("vispruner(important=0.75)", (64,), "VisPruner's README, LLaVA-1.5", "vispruner"),
    points("vispruner", (160,), "VisPruner's README, LLaVA-NeXT: 32 a tile"),
    points("visionzip", LLAVA, "VisionZip's README, LLaVA-1.5: 162 + 30, 108 + 20, 54 + 10"),
    points("visionzip", NEXT, f"VisionZip and {HIPRUNE.format(3)}, LLaVA-NeXT: 108 + 20, 54 + 10, 27 + 5 a tile"),
    points("hiprune", LLAVA, f"{HIPRUNE.format(2)}, LLaVA-1.5"),
    points("hiprune", NEXT, f"{HIPRUNE.format(3)}, LLaVA-NeXT"),
    points("hiprune", QWEN, f"{HIPRUNE.format('4 and 9')}, Qwen2.5-VL"),
    points("hiprune++", LLAVA, "HiPrune's third version, LLaVA-1.5, whose own counts are a tenth higher"),
    points("hired", (0.4, 0.2, 0.1), "HiRED, LLaVA-NeXT"),
    points("hired", LLAVA, f"{HIPRUNE.format(2)}, LLaVA-1.5"),
    points("hired", (640, 320), f"{HIPRUNE.format(3)}, LLaVA-NeXT"),
    one("prumerge-adaptive", "prumerge(adaptive=True)", "LLaVA-PruMerge, LLaVA-1.5: about 32 of 576"),
    points("prumerge", LLAVA, f"{UNIPRUNE.format(1)}, LLaVA-1.5"),
    one("prumerge+-adaptive", "prumerge+(adaptive=True)", "LLaVA-PruMerge, LLaVA-1.5: about 144 of 576"),
    points("prumerge+", (128, 64), f"{AUTOPRUNE.format(1)}, LLaVA-1.5"),
    one("trim-adaptive", "trim(adaptive=True)", "TRIM's configuration, LLaVA-1.5: about a fifth"),
    points("trim", LLAVA, f"{HIPRUNE.format(2)}, LLaVA-1.5"),
    points("trim", NEXT, f"{HIPRUNE.format(3)}, LLaVA-NeXT"),
    points("cdpruner", (128, 64, 32), "CDPruner's scripts, LLaVA-1.5"),
    points("cdpruner", NEXT, "CDPruner's scripts, LLaVA-NeXT: 128, 64 and 32 a tile"),
    points("gprune", (0.5,), "G-Prune's code, LLaVA-NeXT"),
    points("holov", (64,), "HoloV's code, LLaVA-1.5"),
    points("gridprune", (320,), "GridPrune's abstract, LLaVA-NeXT: 11.1 %"),
    one("recoverable-adaptive", "recoverable(adaptive=True)", "Recoverable Compression, LLaVA-1.5: about a tenth"),
    points("tome", LLAVA, f"{HIPRUNE.format(2)}, LLaVA-1.5, where it merges inside the encoder"),
)

INSIDE_THE_LLM = (
    points("fastv@2", (0.5, 0.25, 0.125), "FastV, LLaVA-1.5: K = 2, R = 50, 75 and 87.5 %", "fastv"),
    points("fastv@2", LLAVA, f"{UNIPRUNE.format(1)}, LLaVA-1.5: what is left from layer 2 on", "fastv"),
    *(
        one(f"fastv-average-{mean}", f"fastv@2:{keep}", f"{mean} tokens a layer on average, 32 layers of LLaVA-1.5-7B")
        for mean, keep in ((192, 166), (128, 98), (64, 30))
    ),
)

COMBINED = [
    points(f"{before}:0.333 > {inside}@2", (0.333,), f"{UNIPRUNE.format(5)}, InternVL3-8B", f"{before}+{inside}")
    for before in ("random", "divprune", "gprune")
    for inside in ("random", "fastv")
]

PRESETS: dict[str, Preset] = {
    name: preset for group in (*BEFORE_THE_LLM, *INSIDE_THE_LLM, *COMBINED) for name, preset in group
}


def written_out(text: str) -> str:
    """A recipe string with the recipes of presets in place of their names."""
    parts = text.split(">")
    return ">".join(PRESETS[part.strip()].recipe if part.strip() in PRESETS else part for part in parts)
