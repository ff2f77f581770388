"""How fast the greedy selections are beside the plain algorithms of their authors.

    python benchmarks/selecting.py

runs DivPrune, CDPruner and Hi-Lo's selection on one thread, in turns with the authors' way (the whole matrix of
distances, or the whole kernel, in float32), on features of two kinds, and writes benchmarks/results/selectors.json:
the least processor time of each in milliseconds, the ratio, and the ratio of the authors' way to itself as the noise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.selectors import ascending
from vlmprune.core.view import Aligned, Grid, ImageView, ModelInfo
from vlmprune.methods.hybrid.hilo import HiLo
from vlmprune.methods.vision.cdpruner import CDPruner
from vlmprune.methods.vision.divprune import DivPrune

OUT = Path(__file__).parent / "results" / "selectors.json"
INFO = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)
SHAPES = {  # (tokens, kept, dimensions), and the ratio to reach
    "divprune": (((576, 64, 4096), 1.5), ((2880, 320, 4096), 1.5), ((10000, 1000, 1024), 5.0)),
    "cdpruner": (((576, 64, 4096), 1.8), ((2900, 320, 4096), 1.8), ((10000, 1000, 1024), 1.8)),
}
HILO, HILO_LIMIT = ((576, 64, 1024), (576, 64, 4096)), 2.5
PIXELS, COMMON = 588, 768  # of a patch of 14 x 14; dimensions in which tokens are compared with the question
MANY = 5000  # tokens from which on each way runs a third as often


def divprune_plain(view: ImageView) -> Tensor:
    """All distances at first; at each step the rows of all picks, and their smallest entries."""
    features = view["features"]
    unit = features / features.norm(dim=1, keepdim=True)
    distance = 1.0 - torch.mm(unit, unit.t())
    picks = torch.empty(view.keep, dtype=torch.long)
    for step in range(view.keep):
        if step == 0:
            nearest = torch.topk(distance, 2, dim=0, largest=False).values[1]
        else:
            nearest = torch.min(torch.index_select(distance, 0, picks[:step]), dim=0).values
        picks[step] = torch.argmax(nearest)
    return ascending(picks)


def cdpruner_plain(view: ImageView) -> Tensor:
    """The whole kernel, and a Cholesky factorisation of the rows of the picks."""
    features, aligned = view["features"], view["aligned"]
    unit = features / features.norm(dim=-1, keepdim=True)
    visual, text = (rows / rows.norm(dim=-1, keepdim=True) for rows in (aligned.visual, aligned.text))
    relevance = -(visual @ text.T).mean(dim=-1)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kernel = relevance[:, None] * (unit @ unit.T) * relevance[None, :]
    factors, left = torch.zeros(view.keep, view.n), kernel.diagonal().clone()
    picks = torch.empty(view.keep, dtype=torch.long)
    for step in range(view.keep):
        pick = torch.argmax(left)
        picks[step] = pick
        factors[step] = (kernel[pick] - factors[:step, pick] @ factors[:step]) / torch.sqrt(left[pick])
        left -= torch.square(factors[step])
        left[pick] = -float("inf")
    return ascending(picks)


PLAIN = {"divprune": (DivPrune(), divprune_plain), "cdpruner": (CDPruner(), cdpruner_plain)}


def image(kind: str, n: int, keep: int, width: int, seed: int = 0) -> ImageView:
    """An image of random features, or of features around twelve centres."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(n, width, generator=draw)
    if kind == "clustered":
        features = torch.randn(12, width, generator=draw)[torch.arange(n) * 12 // n] + 0.6 * features
    visual = features[:, :COMMON] if width >= COMMON else features
    text = torch.randn(1, visual.shape[1], generator=draw)
    signals: dict[str, Any] = {
        "features": features,
        "aligned": Aligned(visual, text, clip=True),
        "pixels": torch.rand(n, PIXELS, generator=draw),
    }
    return ImageView(keep, torch.arange(n), Grid(1, n), INFO, signals)


def least(ways: Sequence[Callable[[], Any]], repeats: int) -> tuple[list[float], list[Any]]:
    """The least processor time of each in milliseconds, in turns, and what each found."""
    best, found = [float("inf")] * len(ways), [None] * len(ways)
    for _ in range(repeats):
        for number, way in enumerate(ways):
            start = time.process_time()
            found[number] = way()
            best[number] = min(best[number], 1000 * (time.process_time() - start))
    return best, found


def against_authors(name: str, kind: str, shape: tuple[int, int, int], target: float, repeats: int) -> dict[str, Any]:
    view = image(kind, *shape)
    method, plain = PLAIN[name]
    repeats = max(1, repeats // (3 if shape[0] > MANY else 1))
    times, found = least([lambda: plain(view), lambda: method.select(view), lambda: plain(view)], repeats)
    return {
        "method": name, "features": kind, "tokens": shape[0], "kept": shape[1], "width": shape[2],
        "same": int(torch.isin(found[0], found[1]).sum()),
        "plain_ms": round(times[0], 1), "ours_ms": round(times[1], 1), "ratio": round(times[0] / times[1], 2),
        "target": target, "noise": round(times[0] / times[2], 2),
    }  # fmt: skip


def hilo_against_divprune(kind: str, shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    view, divprune = image(kind, *shape), DivPrune()

    def hilo() -> Any:
        view.memory.clear()
        return HiLo().plan(view)

    times, _ = least([lambda: divprune.select(view), hilo, lambda: divprune.select(view)], repeats)
    return {
        "features": kind, "tokens": shape[0], "kept": shape[1], "width": shape[2],
        "divprune_ms": round(times[0], 1), "hilo_ms": round(times[1], 1), "ratio": round(times[1] / times[0], 2),
        "limit": HILO_LIMIT, "noise": round(times[0] / times[2], 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="(default: 9; a third of that for the largest)")
    parser.add_argument("--largest", type=int, default=10000, help="leave out more tokens than that")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ("random", "clustered")
    made: dict[str, Any] = {"torch": torch.__version__, "threads": 1, "repeats": asked.repeats}
    made |= {"hilo": [], "selections": []}
    for shape in HILO:
        made["hilo"] += [hilo_against_divprune(kind, shape, asked.repeats) for kind in kinds]
    for name, shapes in SHAPES.items():
        for shape, target in shapes:
            if shape[0] > asked.largest:
                continue
            for kind in kinds:
                made["selections"].append(against_authors(name, kind, shape, target, asked.repeats))
                print(made["selections"][-1], flush=True)
                asked.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
