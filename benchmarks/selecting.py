"""How fast the greedy selections are beside the plain algorithms of their authors.

    python benchmarks/selecting.py

runs DivPrune, CDPruner and Hi-Lo's selection on one thread, in turns with the authors' way (the whole matrix of
distances, or the whole kernel, in float32), on features of two kinds, and writes benchmarks/results/selectors.json:
the least time of each in milliseconds, the ratio, and the ratio of the authors' way to itself as the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from beside import least, parser, timed
from torch import Tensor

from vlmprune.bench.store import write_json
from vlmprune.core.selectors import ascending
from vlmprune.core.view import Aligned, Grid, ImageView, ModelInfo
from vlmprune.methods.hybrid.hilo import HiLo
from vlmprune.methods.vision.cdpruner import CDPruner
from vlmprune.methods.vision.divprune import DivPrune

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
    picks = torch.empty(view.keep, dtype=torch.long, device=view["features"].device)
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
    factors, left = unit.new_zeros(view.keep, view.n), kernel.diagonal().clone()
    picks = torch.empty(view.keep, dtype=torch.long, device=view["features"].device)
    for step in range(view.keep):
        pick = torch.argmax(left)
        picks[step] = pick
        factors[step] = (kernel[pick] - factors[:step, pick] @ factors[:step]) / torch.sqrt(left[pick])
        left -= torch.square(factors[step])
        left[pick] = -float("inf")
    return ascending(picks)


PLAIN = {"divprune": (DivPrune(), divprune_plain), "cdpruner": (CDPruner(), cdpruner_plain)}


def image(kind: str, n: int, keep: int, width: int, device: str) -> ImageView:
    """An image of random features, or of features around twelve centres."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(n, width, generator=draw)
    if kind == "clustered":
        features = torch.randn(12, width, generator=draw)[torch.arange(n) * 12 // n] + 0.6 * features
    visual = features[:, :COMMON] if width >= COMMON else features
    text = torch.randn(1, visual.shape[1], generator=draw)
    signals: dict[str, Any] = {
        "features": features.to(device),
        "aligned": Aligned(visual.to(device), text.to(device), clip=True),
        "pixels": torch.rand(n, PIXELS, generator=draw).to(device),
    }
    return ImageView(keep, torch.arange(n, device=device), Grid(1, n), INFO, signals)


def against_authors(
    name: str, kind: str, shape: tuple[int, int, int], target: float, repeats: int, device: str
) -> dict[str, Any]:
    view = image(kind, *shape, device)
    method, plain = PLAIN[name]
    found: dict[str, Any] = {}

    def run(which: str, way: Callable[[ImageView], Any]) -> float:
        return timed(lambda: found.update({which: way(view)}), device)

    repeats = max(1, repeats // (3 if shape[0] > MANY else 1))
    times = least(
        [lambda: run("plain", plain), lambda: run("ours", method.select), lambda: run("plain", plain)], repeats
    )
    return {
        "method": name, "features": kind, "tokens": shape[0], "kept": shape[1], "width": shape[2],
        "same": int(torch.isin(found["plain"], found["ours"]).sum()),
        "plain_ms": round(times[0], 1), "ours_ms": round(times[1], 1), "ratio": round(times[0] / times[1], 2),
        "target": target, "noise": round(times[0] / times[2], 2),
    }  # fmt: skip


def hilo_against_divprune(kind: str, shape: tuple[int, int, int], repeats: int, device: str) -> dict[str, Any]:
    view, divprune = image(kind, *shape, device), DivPrune()

    def hilo() -> Any:
        view.memory.clear()
        return HiLo().plan(view)

    plain = partial(timed, lambda: divprune.select(view), device)
    times = least([plain, lambda: timed(hilo, device), plain], repeats)
    return {
        "features": kind, "tokens": shape[0], "kept": shape[1], "width": shape[2],
        "divprune_ms": round(times[0], 1), "hilo_ms": round(times[1], 1), "ratio": round(times[1] / times[0], 2),
        "limit": HILO_LIMIT, "noise": round(times[0] / times[2], 2),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "selectors.json", repeats=9)
    made.add_argument("--largest", type=int, default=10000, help="leave out more tokens than that")
    asked = made.parse_args(arguments)
    if asked.device == "cpu":
        torch.set_num_threads(1)
    kinds = ("random", "clustered")
    found: dict[str, Any] = {"torch": torch.__version__, "threads": 1, "repeats": asked.repeats}
    found |= {"device": asked.device, "hilo": [], "selections": []}
    for shape in HILO:
        found["hilo"] += [hilo_against_divprune(kind, shape, asked.repeats, asked.device) for kind in kinds]
        write_json(asked.out, found)
    for name, shapes in SHAPES.items():
        for shape, target in shapes:
            if shape[0] > asked.largest:
                continue
            for kind in kinds:
                found["selections"].append(against_authors(name, kind, shape, target, asked.repeats, asked.device))
                print(found["selections"][-1], flush=True)
                write_json(asked.out, found)


if __name__ == "__main__":
    main()
