"""Published settings by name: `vlmprune.prune(model, "visionzip-192")`. A preset may stand for a stage of a recipe.

A whole number in a recipe is tokens per image, whatever the image is cut into. So `visionzip-192`, 192 of the 576
tokens of LLaVA-1.5, is 192 tokens on any model, and `visionzip-640` is 640 of the 2880 of LLaVA-NeXT, where each of
five tiles gets 128 of them. Where authors give a share, as they do for images of any size, the preset has a share too.
Options that authors give in tokens of one image or tile are shares here, so that they fit images and tiles alike
(VisionZip's 30 contextual tokens of 192 are the same share as 10 of 64, its default). Methods that act at several
layers of the LLM derive these from the model's depth. Layers and averages written in a recipe hold for the model that
the source names.
"""

from __future__ import annotations

from typing import NamedTuple

from vlmprune.core.budget import Keep


class Preset(NamedTuple):
    """A published setting.

    Attributes:
        recipe: the recipe string that it stands for, without presets.
        source: the publication that it comes from, and the model it was made for.
    """

    recipe: str
    source: str


Named = list[tuple[str, Preset]]


def points(recipe: str, keeps: tuple[Keep, ...], source: str, name: str = "") -> Named:
    """A preset `name-keep` for each budget; without a name, the recipe serves as the name."""
    return [(f"{name or recipe}-{keep}", Preset(f"{recipe}:{keep}", source)) for keep in keeps]


def one(name: str, recipe: str, source: str) -> Named:
    """A preset by its name."""
    return [(name, Preset(recipe, source))]


LLAVA, NEXT, QWEN = (192, 128, 64), (640, 320, 160), (0.334, 0.223, 0.112)
SHARES = (0.333, 0.222, 0.111)
LIGHTCOMPRESS = "tome(order=matching, weighted=False, inside=True, prop_attn=False)"
HIPRUNE, UNIPRUNE, AUTOPRUNE = "HiPrune's table {}", "UniPruneBench's table {}", "AutoPrune's supplement, table {}"

BEFORE_THE_LLM = (
    points("random", LLAVA, f"{UNIPRUNE.format(1)}, LLaVA-1.5"),
    points("divprune", (0.098,), "DivPrune's scripts, LLaVA-1.5 and LLaVA-NeXT"),
    points("divprune", LLAVA, f"{UNIPRUNE.format(1)}, LLaVA-1.5"),
    points("fastervlm", (288, 144, 58, 29), "FasterVLM's README, LLaVA-1.5: 50, 75, 90 and 95 % pruned"),
    points("fastervlm", (128, 64), f"{AUTOPRUNE.format(1)}, LLaVA-1.5"),
    points("fastervlm", (1440, 720, 290, 145), "FasterVLM's README, LLaVA-NeXT: 288, 144, 58 and 29 per tile"),
    points("fastervlm", (1536, 1024, 512, 208, 104), "FasterVLM's branch for Video-LLaVA: of 8 frames of 256 tokens"),
    points("vispruner", (192,), f"{UNIPRUNE.format(1)}, LLaVA-1.5; the share of important tokens is not published"),
    points("vispruner", (128,), "VisPruner's README, LLaVA-1.5"),
    points("vispruner(important=0.75)", (64,), "VisPruner's README, LLaVA-1.5", "vispruner"),
    points("vispruner", (160,), "VisPruner's README, LLaVA-NeXT: 32 per tile"),
    points("visionzip", LLAVA, "VisionZip's README, LLaVA-1.5: 162 + 30, 108 + 20, 54 + 10"),
    points("visionzip", NEXT, f"VisionZip and {HIPRUNE.format(3)}, LLaVA-NeXT: 108 + 20, 54 + 10, 27 + 5 per tile"),
    points("hiprune", LLAVA, f"{HIPRUNE.format(2)}, LLaVA-1.5"),
    points("hiprune", NEXT, f"{HIPRUNE.format(3)}, LLaVA-NeXT"),
    points("hiprune", QWEN, "HiPrune's tables 4 and 9, Qwen2.5-VL"),
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
    points("cdpruner", NEXT, "CDPruner's scripts, LLaVA-NeXT: 128, 64 and 32 per tile"),
    points("scope", (64,), "SCOPE's README, LLaVA-1.5"),
    points("scope", (160,), "SCOPE's README, LLaVA-NeXT: 32 per tile"),
    points("mmtok", (64,), "MMTok's code, LLaVA-1.5"),
    points("mmtok", (160,), "MMTok's README, LLaVA-NeXT: 32 per tile"),
    points("mmtok", (0.2,), "MMTok's code, Qwen2.5-VL"),
    points("otprune", (0.098,), "OTPrune's scripts, LLaVA-1.5"),
    points("prunesid", (64,), "PruneSID's code, LLaVA-1.5, where one of the 64 is the CLS token"),
    points("prunesid", (320,), "PruneSID's code, LLaVA-NeXT: 64 per tile"),
    points("dcp", (0.25,), "DCP's abstract, LLaVA-1.5-13B; the method is a reconstruction"),
    *(
        one(f"nuwa-{mean}", f"nuwa:{anchors} > fastv@16:{left}", f"Nuwa's code, LLaVA-1.5: {mean} on average")
        for mean, anchors, left in ((192, 336, 48), (128, 224, 32), (64, 112, 16))
    ),
    *(
        one(
            f"nuwa-{mean}",
            f"nuwa(quota={quota}, percentile=0.5):{anchors} > fastv@16:0.1",
            f"Nuwa's code, LLaVA-NeXT, for {mean}: {anchors} before the LLM, newlines not counted",
        )
        for mean, quota, anchors in ((640, 3, 1162), (320, 3, 582), (160, 2, 290))
    ),
    *(
        one(f"nuwa-qwen-{mean}", f"nuwa(quota={quota}):{anchors} > fastv@16:{left}", "Nuwa's code, Qwen2.5-VL")
        for mean, quota, anchors, left in ((0.75, 4, 0.85, 0.7), (0.5, 3, 0.6, 0.66), (0.25, 3, 0.35, 0.42))
    ),
    points("apet", LLAVA, "ApET's scripts, LLaVA-1.5, for 64; the others by its rule: 3 to 1 in two stages"),
    points("apet", (640,), "ApET's scripts, LLaVA-NeXT: 192 per tile, then 64"),
    points("apet(inside=False, basis_write=half)", (0.3,), "ApET's scripts, Qwen2.5-VL", "apet-qwen"),
    points("gprune", (0.5,), "G-Prune's code, LLaVA-NeXT"),
    points("holov", (64,), "HoloV's code, LLaVA-1.5"),
    points("gridprune", (320,), "GridPrune's abstract, LLaVA-NeXT: 11.1 %"),
    one("recoverable-adaptive", "recoverable(adaptive=True)", "Recoverable Compression, LLaVA-1.5: about a tenth"),
    points("tome(inside=True)", LLAVA, f"{HIPRUNE.format(2)}, LLaVA-1.5", "tome-inside"),
    points(LIGHTCOMPRESS, (208,), "LightCompress's ToMe, 16 tokens per layer, LLaVA-1.5", "tome-lightcompress"),
    points("tome", LLAVA, f"{HIPRUNE.format(2)}, LLaVA-1.5, where it merges inside the encoder"),
    one("pixelprune-lossless", "pixelprune(adaptive=True)", "PixelPrune, Qwen3-VL: 50 to 77 % on pages and screens"),
    points("vidcom2", (0.25, 0.15), "VidCom2's tables, videos on LLaVA-OneVision (32 frames)"),
    points("vidcom2", (0.35,), "VidCom2's project page, videos on Qwen3-VL-8B (64 frames)"),
    points("vcast", (0.25, 0.2, 0.15, 0.1), "V-CAST's tables, videos on Qwen3-VL (64 frames)"),
    points("fastvid", (0.1,), "FastVID's scripts, videos on LLaVA-OneVision (32 frames)"),
    points("fastvid", (0.27,), "FastVID's scripts, videos on Qwen2.5-VL, where theirs keeps about 0.24"),
    points("evs", (0.3,), "Nemotron Nano VL v2, which was trained with it: 70 % of a video pruned"),
    points("evs", (0.2,), "SGLang's runs on Qwen3-VL: 80 % of a video pruned"),
)

INSIDE_THE_LLM = (
    points("fastv@2", (0.5, 0.25, 0.125), "FastV, LLaVA-1.5: K = 2, R = 50, 75 and 87.5 %", "fastv"),
    points("fastv@2", LLAVA, f"{UNIPRUNE.format(1)}, LLaVA-1.5: what is left from layer 2 on", "fastv"),
    points("fastv@2", (640, 320), f"{HIPRUNE.format(3)}, LLaVA-NeXT", "fastv"),
    points("fastv(average=True)@2", LLAVA, "this many of LLaVA-1.5's tokens per layer on average", "fastv-average"),
    points("dart@2", LLAVA, "DART's scripts, LLaVA-1.5, which come out 4 tokens higher", "dart"),
    points("pyramiddrop", (0.5,), "PyramidDrop, LLaVA-1.5 and LLaVA-NeXT: 270 of 576 tokens per layer on average"),
    points("pyramiddrop(average=True)", LLAVA, f"{HIPRUNE.format(2)}, LLaVA-1.5", "pyramiddrop"),
    points("pyramiddrop(average=True)", (640, 320), f"{HIPRUNE.format(3)}, LLaVA-NeXT", "pyramiddrop"),
    points("sparsevlm", (192, 128, 96, 64), "SparseVLM's code, version 1.5, LLaVA-1.5"),
    points("sparsevlm", (640, 320), f"{HIPRUNE.format(3)}, LLaVA-NeXT"),
    points("sparsevlm(version=1.0)", LLAVA, "SparseVLM's first version, LLaVA-1.5", "sparsevlm-1.0"),
    points("sparsevlm(version=+)", (192, 128, 96, 64), "SparseVLM+, its code's version 2.0, LLaVA-1.5", "sparsevlm+"),
    points("visiondrop", (32,), "VisionDrop's scripts, LLaVA-1.5: 48 tokens before the LLM, then 35, 26 and 19"),
    points("vlmpruner@2", LLAVA, "VLM-Pruner's scripts, LLaVA-1.5: 66.7, 77.8 and 88.9 % pruned", "vlmpruner"),
    points("adaptinfer", (192,), "between AdaptInfer's 128 and all tokens (ours), LLaVA-1.5"),
    points("adaptinfer", (128, 64, 48, 32), "AdaptInfer's code, LLaVA-1.5-7B"),
    points("adaptinfer", (0.5, 0.3, 0.1), "AdaptInfer's code, Qwen2-VL-2B"),
    points("autoprune", LLAVA, f"{AUTOPRUNE.format(3)}, LLaVA-1.5-7B"),
    points("autoprune", (288, 144, 58), f"{AUTOPRUNE.format(4)}, LLaVA-1.5-13B"),
    points("autoprune(flash=True)", LLAVA, f"{AUTOPRUNE.format(3)}, LLaVA-1.5-7B: AutoPrune-Flash", "autoprune-flash"),
    points("v2drop", (0.5,), "V2Drop's code, LLaVA-1.5: 203 of 576 tokens per layer on average"),
    points("v2drop", (0.25,), "V2Drop's code, Qwen2-VL: a quarter, then a twentieth of these, then one token"),
    points("priortr", LLAVA, "PriorTR's README, LLaVA-1.5: what is left from layer 3 on"),
    points("priortr", (320,), "PriorTR's code, LLaVA-NeXT"),
    points("priortr", (0.25,), "PriorTR's code, InternVL2.5: what is left from layer 2 on"),
    points("priortr", (0.1111,), "PriorTR's code, Qwen2-VL and Qwen3-VL"),
    points("clse", LLAVA, "CLSE's code, LLaVA-1.5: 330, 210 and 62 tokens are left for 192"),
    points("clse", QWEN, "CLSE's port in PriorTR's code, Qwen2-VL and Qwen3-VL"),
    points("fitprune", LLAVA, "interpolated (ours) from FitPrune's recipes for LLaVA-1.5-7B"),
    points("mustdrop", LLAVA, f"{UNIPRUNE.format(1)}, LLaVA-1.5, by a threshold of each image's own (ours)"),
    *(
        one(
            f"mustdrop-{name}",
            f"mustdrop(global_threshold={whole}, individual_threshold={single})",
            f"MustDrop's scripts, LLaVA-1.5, thresholds that leave {name.rpartition('-')[2]} on that task",
        )
        for name, whole, single in (
            ("textvqa-192", 0.001, 0.001),
            ("textvqa-128", 0.0012, 0.001),
            ("textvqa-64", 0.011, 0.01),
            ("vizwiz-64", 0.005, 0.001),
        )
    ),
    one("vtw-7b", "vtw@16", "VTW's command line, LLaVA-1.5-7B"),
    one("vtw-13b", "vtw@20", "VTW's command line, LLaVA-1.5-13B"),
    points("topv@3", (0.437,), f"{AUTOPRUNE.format(2)}, LLaVA-1.5-7B: 49 % of FLOPs", "topv"),
    points("hilo", (0.2, 0.1), "Hi-Lo Prune's supplement, one cut"),
    points("hilo@4,8,16", (0.2, 0.1), "Hi-Lo Prune's supplement, three cuts", "hilo-staged"),
    one("fuse-divprune-0.1", "fuse(divprune:0.1)@2", "Hi-Lo Prune: its fusion in front of another method"),
    one("fuse-cdpruner-0.1", "fuse(cdpruner:0.1)@2", "Hi-Lo Prune: its fusion in front of another method"),
)

# Two stages that keep a third each, and UniPruneBench's versions of methods at its layer K = 2. What its code does to
# text between images and, before the LLM, to tiles and the order of tokens is not repeated.
ONLY = "UniPruneBench's version, for reproduction only"
UNIPRUNEBENCH = (
    *(
        points(f"{before}:0.333 > {inside}@2", (0.333,), f"{UNIPRUNE.format(5)}, InternVL3-8B", f"{before}+{inside}")
        for before in ("random", "divprune", "gprune")
        for inside in ("random", "fastv")
    ),
    points("random", SHARES, "UniPruneBench's Random-Pre", "unibench-random"),
    points("random(compat=uniprune)@2", SHARES, f"{ONLY}: Random-Intra", "unibench-random-inside"),
    points("divprune", SHARES, "UniPruneBench's DivPrune", "unibench-divprune"),
    points("gprune(compat=uniprune)", SHARES, ONLY, "unibench-gprune"),
    points("fastv(compat=uniprune)@2", SHARES, f"{ONLY}: tokens in order of score", "unibench-fastv"),
    points("dart(image_pivots=10, text_pivots=5, compat=uniprune)@2", SHARES, ONLY, "unibench-dart"),
    points("fitprune(compat=uniprune)", SHARES, f"{ONLY}: it keeps the least important tokens", "unibench-fitprune"),
    *(
        one(
            f"unibench-pdrop-{keep}",
            " > ".join(f"fastv(compat=uniprune)@{layer}:{keep}" for layer in (6, 12, 18)),
            f"{ONLY}: its FastV in stages",
        )
        for keep in SHARES
    ),
    *(
        one(f"unibench-pool-{tokens}", f"pool(compat=uniprune):{tokens / 256}", f"{ONLY}: {tokens} of a tile's 256")
        for tokens in (25, 16, 4)
    ),
)

PRESETS: dict[str, Preset] = {
    name: preset for group in (*BEFORE_THE_LLM, *INSIDE_THE_LLM, *UNIPRUNEBENCH) for name, preset in group
}


def written_out(text: str) -> str:
    """A recipe string in which each preset's name is replaced by its recipe."""
    parts = text.split(">")
    return ">".join(PRESETS[part.strip()].recipe if part.strip() in PRESETS else part for part in parts)
