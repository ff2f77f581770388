"""How fast the greedy selections are beside the plain algorithms of their authors, and together beside one by one.

    python benchmarks/selecting.py
    python benchmarks/selecting.py --part together      # the other parts stay as the file has them

runs DivPrune, CDPruner and Hi-Lo's selection on one thread, in turns with the authors' way (the whole matrix of
distances, or the whole kernel, in float32), on features of two kinds, and writes benchmarks/results/selectors.json:
the least time of each in milliseconds, the ratio, and the ratio of the authors' way to itself as the noise. A batch of
images is selected from image by image and together, likewise in turns. The loops over picks alone, without what comes
before them, are run in steps of torch and as this device runs them, which "way" says: numpy on a CPU, Triton's kernel
or a CUDA graph on a GPU. There it is an error if the host waits for a loop.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from beside import least, parser, timed
from torch import Tensor

from vlmprune.bench.store import write_json
from vlmprune.core.roles import SelectsTogether
from vlmprune.core.selectors import ascending
from vlmprune.core.view import Aligned, Grid, ImageView, ModelInfo
from vlmprune.methods import max_min, volume
from vlmprune.methods.diversity import is_here
from vlmprune.methods.hybrid.hilo import HiLo
from vlmprune.methods.recorded import is_recorded
from vlmprune.methods.vision.cdpruner import CDPruner
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.testing.waiting import never_waiting

INFO = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)
SHAPES = {  # (tokens, kept, dimensions), and the ratio to reach
    "divprune": (((576, 64, 4096), 1.5), ((2880, 320, 4096), 1.5), ((10000, 1000, 1024), 5.0)),
    "cdpruner": (((576, 64, 4096), 1.8), ((2900, 320, 4096), 1.8), ((10000, 1000, 1024), 1.8)),
}
HILO, HILO_LIMIT = ((576, 64, 1024), (576, 64, 4096)), 2.5
BATCHES = ((32, (576, 64, 4096)), (8, (2880, 320, 4096)))  # images, and what each is
TOGETHER: dict[str, SelectsTogether] = {"divprune": DivPrune(), "cdpruner": CDPruner(), "hilo": HiLo()}
KINDS = ("random", "clustered")
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


def image(kind: str, n: int, keep: int, width: int, device: str, seed: int = 0) -> ImageView:
    """An image of random features, or of features around twelve centres."""
    draw = torch.Generator().manual_seed(seed)
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
        return HiLo().plans([view])[0]

    plain = partial(timed, lambda: divprune.select(view), device)
    times = least([plain, lambda: timed(hilo, device), plain], repeats)
    return {
        "features": kind, "tokens": shape[0], "kept": shape[1], "width": shape[2],
        "divprune_ms": round(times[0], 1), "hilo_ms": round(times[1], 1), "ratio": round(times[1] / times[0], 2),
        "limit": HILO_LIMIT, "noise": round(times[0] / times[2], 2),
    }  # fmt: skip


def together_against_alone(
    name: str, images: int, shape: tuple[int, int, int], repeats: int, device: str
) -> dict[str, Any]:
    views = [image("clustered", *shape, device, seed) for seed in range(images)]
    method, found = TOGETHER[name], dict[str, list[Any]]()

    def run(which: str, way: Callable[[], Any]) -> float:
        for view in views:
            view.memory.clear()
        return timed(lambda: found.update({which: way()}), device)

    def alone() -> float:
        return run("alone", lambda: [method.select(view) for view in views])

    times = least([alone, lambda: run("together", lambda: method.select_together(views)), alone], repeats)
    pairs = zip(found["alone"], found["together"], strict=True)
    return {
        "method": name, "images": images, "features": "clustered", "tokens": shape[0], "kept": shape[1],
        "width": shape[2], "same": sum(torch.equal(a.sort().values, b.sort().values) for a, b in pairs),
        "alone_ms": round(times[0], 1), "together_ms": round(times[1], 1), "ratio": round(times[0] / times[1], 2),
        "noise": round(times[0] / times[2], 2),
    }  # fmt: skip


def loop_against_steps(
    name: str, images: int, shape: tuple[int, int, int], repeats: int, device: str
) -> dict[str, Any]:
    steps, whole, way = LOOPS[name](images, *shape, device)
    picks = [steps(), whole(), steps(), whole()]  # a graph is recorded the second time
    with never_waiting(device):
        picks += [steps(), whole()]
    times = least([lambda: timed(steps, device), lambda: timed(whole, device), lambda: timed(steps, device)], repeats)
    return {
        "loop": name, "images": images, "tokens": shape[0], "kept": shape[1], "width": shape[2], "way": way(),
        "same": int((picks[-1] == picks[-2]).all(1).sum()), "steps_ms": round(times[0], 2),
        "whole_ms": round(times[1], 2), "ratio": round(times[0] / times[1], 2), "noise": round(times[0] / times[2], 2),
    }  # fmt: skip


Loop = tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[], str]]


def max_min_loop(images: int, n: int, keep: int, width: int, device: str) -> Loop:
    """In steps, as the device does it, and how that is; of distances that are random, as they need no width."""
    matrices = torch.rand(images, n, n, device=device)
    farthest = matrices.amax(2)
    matrices.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    here = is_here(matrices)

    def whole() -> Tensor:
        if here:
            return torch.stack([max_min.picks_here(*own, keep) for own in zip(matrices, farthest, strict=True)])
        return max_min.picks_there(matrices, farthest, keep)

    steps = partial(max_min.in_steps, matrices, farthest, keep)
    return steps, whole, lambda: "numpy" if here else max_min.chosen(matrices)


def volume_loop(images: int, n: int, keep: int, width: int, device: str) -> Loop:
    sets = [image("clustered", n, keep, width, device, seed)["features"] for seed in range(images)]
    lengths = [torch.rand(n, generator=torch.Generator().manual_seed(seed)).to(device) for seed in range(images)]
    vectors = [*sets, *lengths]

    def way() -> str:
        if is_here(sets[0]):
            return "many at once"
        return "graph" if is_recorded(volume.in_steps, vectors, keep) else "torch"

    return (
        lambda: volume.in_steps(vectors, keep)[0],
        lambda: volume.search(sets, lengths, keep, torch.float32)[0],
        way,
    )


LOOPS: dict[str, Callable[[int, int, int, int, str], Loop]] = {"max-min": max_min_loop, "volume": volume_loop}


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "selectors.json", repeats=9)
    made.add_argument("--largest", type=int, default=10000, help="leave out more tokens than that")
    made.add_argument("--part", choices=PARTS, help="only this part; the others stay as the file has them")
    asked = made.parse_args(arguments)
    if asked.device == "cpu":
        torch.set_num_threads(1)
    if asked.part is not None and not asked.out.exists():
        raise SystemExit(f"--part: there is no {asked.out} that has the other parts.")
    found: dict[str, Any] = {} if asked.part is None else json.loads(asked.out.read_text())
    about = {"torch": torch.__version__, "threads": 1, "repeats": asked.repeats, "device": asked.device}
    if any(found.get(name, value) != value for name, value in about.items() if name != "repeats"):
        raise SystemExit(f"--part: {asked.out} was measured otherwise, so all parts are to be measured again.")
    found = {**about, **found}
    for part in PARTS if asked.part is None else [asked.part]:
        found[part] = []
        for row in PARTS[part](asked):
            found[part].append(row)
            print(row, flush=True)
            write_json(asked.out, found)


def _hilo(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for shape in HILO:
        for kind in KINDS:
            yield hilo_against_divprune(kind, shape, asked.repeats, asked.device)


def _selections(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name, shapes in SHAPES.items():
        for shape, target in shapes:
            for kind in KINDS if shape[0] <= asked.largest else ():
                yield against_authors(name, kind, shape, target, asked.repeats, asked.device)


def _together(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in TOGETHER:
        for images, shape in BATCHES:
            if shape[0] <= asked.largest:
                yield together_against_alone(name, images, shape, asked.repeats, asked.device)


def _loops(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in LOOPS:
        for most, (tokens, kept, width) in BATCHES:
            n = min(tokens, asked.largest)  # not left out, as it checks, too
            for images in (1, most):
                row = loop_against_steps(name, images, (n, kept * n // tokens, width), asked.repeats, asked.device)
                yield row
                if asked.device == "cuda" and row["same"] < images:  # they calculate the same; a CPU does not
                    raise AssertionError(f"{name}: {row['way']} picks otherwise than the steps of torch")


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "hilo": _hilo,
    "selections": _selections,
    "together": _together,
    "loops": _loops,
}


if __name__ == "__main__":
    main()
