"""Tables of docs/anatomy.md: what each method is made of, and what its parts do (benchmarks/results/anatomy.json)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docs_methods import anchors
from docs_text import change, table

import vlmprune

FIGURES = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "anatomy.json"
NOT_MEASURED = "Not measured for these models yet; `python benchmarks/anatomy.py` does."
DROPPED, MERGED = "dropped", "merged into those that stay"
STAGES = {"pixels": "before the encoder", "vision": "before the language model", "decoder": "inside it"}

# What is scored, how the tokens are chosen by it, and what happens to the others.
PARTS = {
    "downsample": ("nothing", "the picture gets smaller", "blended in pixels"),
    "uniform": ("nothing", "regular grid", DROPPED),
    "random": ("nothing", "drawn", DROPPED),
    "pool": ("nothing", "rectangles", "averaged in their rectangle"),
    "cdpruner": ("diversity, relevance", "greedy, largest determinant", DROPPED),
    "dcp": ("saliency, relevance", "best", DROPPED),
    "divprune": ("diversity", "greedy, farthest from the chosen", DROPPED),
    "evs": ("change between frames", "first frame, then best", DROPPED),
    "fastervlm": ("saliency", "best", DROPPED),
    "fastvid": ("saliency, coverage", "quota of a segment, then best and centres", MERGED),
    "gprune": ("coverage (what flows to a token in a graph of likeness)", "best", DROPPED),
    "gridprune": ("relevance, saliency", "quota of a zone by relevance, then best", DROPPED),
    "hiprune": ("saliency at two depths", "best, and neighbours of the best", DROPPED),
    "hiprune++": ("saliency at two depths, relevance", "best, neighbours of the best, most relevant", DROPPED),
    "hired": ("saliency at two depths", "quota of a tile, then best", DROPPED),
    "holov": ("saliency, diversity", "quota of a crop, then best", DROPPED),
    "mmtok": ("coverage of the image, coverage of the question", "greedy, largest gain", DROPPED),
    "nuwa": ("saliency", "best of each region", "merged into like ones nearby"),
    "otprune": ("coverage", "greedy, largest gain in volume", DROPPED),
    "pixelprune": ("reconstruction (of pixels from neighbours)", "those that cannot be predicted", DROPPED),
    "prumerge": ("saliency", "best", MERGED),
    "prumerge+": ("saliency", "best and a grid", MERGED),
    "prunesid": ("diversity", "quota of a group, then best without near copies", DROPPED),
    "recoverable": ("saliency, relevance", "outliers, then centres", MERGED),
    "scope": ("saliency, coverage", "greedy, largest gain", DROPPED),
    "tome": ("diversity (likeness of pairs)", "pairs, again and again", MERGED),
    "trim": ("relevance", "best", "averaged into one"),
    "vcast": ("change between frames, diversity", "quota of a frame, then best", DROPPED),
    "vidcom2": ("diversity (distance from means)", "quota of a frame, then best", DROPPED),
    "visionzip": ("saliency", "best, and a sample of the rest", "merged into the sample"),
    "vispruner": ("saliency, diversity", "best, then no near copies", DROPPED),
    "adaptinfer": ("relevance", "best, in several cuts", DROPPED),
    "autoprune": ("relevance", "best, in every layer", DROPPED),
    "clse": ("relevance, change in a layer", "best, in several cuts", DROPPED),
    "dart": ("diversity (unlike a few pivots)", "best of each pivot", DROPPED),
    "fastv": ("relevance", "best", DROPPED),
    "fitprune": ("relevance, saliency", "best, in every layer", DROPPED),
    "mustdrop": ("saliency, relevance", "best, in several cuts", DROPPED),
    "priortr": ("relevance above a prior", "best", DROPPED),
    "pyramiddrop": ("relevance", "best, in several cuts", DROPPED),
    "sparsevlm": ("relevance", "best, in several cuts", "the best of them merged into centres"),
    "topv": ("reconstruction (transport to the layer's output)", "best, and a sample of the rest", DROPPED),
    "v2drop": ("change in a layer", "best, in several cuts", DROPPED),
    "vlmpruner": ("diversity, nearness", "greedy, from near to far", MERGED),
    "vtw": ("nothing", "none stays", DROPPED),
    "apet": ("reconstruction (by a few basis tokens)", "best", MERGED),
    "fuse": ("its selector's", "its selector's", "attended to more, just before they go"),
    "hilo": (
        "diversity of pixels and of features",
        "greedy, coarse then fine",
        "attended to more, just before they go",
    ),
    "visiondrop": ("saliency, also inside the language model", "best, in several cuts", MERGED),
}


def parts() -> str:
    """A row for every method; dashes for one whose parts nobody has looked at yet."""
    if gone := PARTS.keys() - vlmprune.METHODS.keys():
        raise SystemExit(f"PARTS in docs_anatomy.py names methods that there are not: {', '.join(sorted(gone))}")
    rows = [
        [f"[`{name}`](methods.md#{anchors()[name]})", _where(name), *PARTS.get(name, ("–", "–", "–"))]
        for name in vlmprune.METHODS
    ]
    return table(("method", "where", "scored", "chosen", "the others"), rows)


def _where(name: str) -> str:
    return ", ".join(STAGES[stage] for stage in vlmprune.METHODS[name].stage.split(", "))


def ablations(path: Path = FIGURES) -> str:
    """What each part changes, a table for each part."""
    if not path.exists():
        return NOT_MEASURED
    found = json.loads(path.read_text(encoding="utf-8"))
    models: dict[str, Any] = found["accuracy"]
    whole = ", ".join(f"{of['vanilla']:.1f} on `{name}`" for name, of in models.items())
    about = (
        f"Accuracy in percent, mean over the tasks, {found['questions']} questions of each; unpruned {whole}. A change "
        "is in points, on the same questions, with its 95 % interval; in **bold** where the interval excludes zero."
    )
    rows = {name: of["rows"] for name, of in models.items()}
    kinds = dict.fromkeys(row["what"] for of in rows.values() for row in of)
    return "\n\n".join([about, *(f"**{kind}**\n\n{_of_kind(kind, rows)}" for kind in kinds)])


def _of_kind(kind: str, models: dict[str, list[dict[str, Any]]]) -> str:
    by_pair: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for name, rows in models.items():
        for row in rows:
            if row["what"] == kind:
                by_pair.setdefault((_side(row, ""), _side(row, "against_")), {})[name] = row
    cells = [[*pair, *(text for name in models for text in _figures(of.get(name)))] for pair, of in by_pair.items()]
    heads: Iterable[str] = (head for name in models for head in (f"`{name}`", "change"))
    return table(("recipe", "held against", *heads), cells)


def _side(row: dict[str, Any], which: str) -> str:
    policy = row[f"{which}positions"]
    text = row["against" if which else "recipe"]
    return f"`{text}`" if policy is None else f"`{text}`, {policy}"


def _figures(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "–", "–"
    _, low, high = row["change"]
    words = change(row["change"])
    return f"{row['mean']:.1f}", f"**{words}**" if low > 0 or high < 0 else words
