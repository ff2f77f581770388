"""Runners of methods that share a budget out over the image, or merge neighbours and look-alikes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from golden_runners.case import Case, Failed, Runner, check_exact, view
from golden_runners.vision import HALF_PRECISION_SHARE
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.view import Grid, ImageView, ModelInfo
from vlmprune.methods.matching import match
from vlmprune.methods.vision.gprune import GPrune
from vlmprune.methods.vision.holov import HoloV
from vlmprune.methods.vision.pool import Pool
from vlmprune.methods.vision.tome import ToMe

NEXT = ModelInfo("llava_next", encoder_layers=24, decoder_layers=32, has_cls=True)
BASE = 24 * 24  # tokens of LLaVA-NeXT's base tile
INTERNVL = ModelInfo("internvl", encoder_layers=24, decoder_layers=28, has_cls=True)


def _options(case: Case) -> dict[str, Any]:
    return {
        "similarity": case["similarity"],
        "temperature": case["temperature"],
        "iterations": case["iterate_num"],
        "score_dtype": case.get("dtype", "float32"),
    }


def gprune(case: Case) -> None:
    if case["variant"] == "official_llava_next":
        _gprune_next(case)
        return
    features, n = case.input("features"), len(case.input("features"))
    keep = max(1, int(n * case["keep_ratio"]))
    case.expect_setting("keep_num", keep)
    uniprune, default = GPrune(**_options(case), compat="uniprune"), GPrune(**_options(case))
    image = view(n, keep, {"features": features})
    _picks(case, "kept_order", top_k(uniprune.score(features), keep))
    kept = uniprune.select(image)
    _picks(case, "kept_sorted", kept)
    check_exact(default.select(image), keep, n)
    _same_scores(default, uniprune, features)


def _gprune_next(case: Case) -> None:
    """LLaVA-NeXT's layout: the base tile, then the rows of the canvas with a newline at each one's end."""
    features, rows, cols = case.input("features"), case["row_num"], case["col_num"]
    newline = (0, 1)
    canvas = BASE + torch.arange(rows * cols).view(rows, cols)
    cells = torch.cat([torch.arange(BASE), nn.functional.pad(canvas, newline, value=-1).flatten()])
    # the canvas counts as tiles of the base's size one after another, for all that matters is which is the first
    grid = Grid(24, 24, 1 + math.ceil(rows * cols / BASE))
    image = ImageView(1, torch.arange(len(cells)), grid, NEXT, {"features": features}, cells=cells)
    official, default = GPrune(**_options(case), compat="official"), GPrune(**_options(case))
    graphs = official.graphs(image)
    counts = [int(case["keep_ratio"] * len(graph)) for graph in graphs]
    picks = []
    for name, graph, count in zip(("base", "hires"), graphs, counts, strict=True):
        score = official.score(features[graph])
        _scores(case, f"score_{name}", score)
        picks.append(graph[top_k(score, count)])
        _picks(case, f"kept_{name}_order", picks[-1])
    kept = ascending(torch.cat([(cells < 0).nonzero().squeeze(1), *picks]))
    _picks(case, "kept_sorted", kept)
    image.keep = _asked(len(cells), graphs, counts) or 0
    if image.keep and not torch.equal(official.select(image), kept):
        raise Failed("the method puts its parts together differently")
    image.keep = len(kept)
    check_exact(default.select(image), len(kept), len(cells))
    for own, theirs in zip(default.graphs(image), graphs, strict=True):
        if not torch.equal(own, theirs):
            raise Failed("the default has other graphs")
        _same_scores(default, official, features[own])


def _same_scores(default: GPrune, authors: GPrune, features: Tensor) -> None:
    """Products with a vector give what the matrix power gives, up to rounding: near ties may change places.

    In float32 each rounds on its own way, so each is held to the same graph's scores in float64.
    """
    own, theirs = default.score(features), authors.score(features)
    if default.score_dtype == "float32":
        flow = default.flow(features)
        mass = features.norm(dim=-1).double() @ torch.linalg.matrix_power(flow.double(), default.iterations)
        exact = mass / (flow > 0).sum(1)
        same = all(torch.allclose(score.double(), exact, rtol=1e-5, atol=0) for score in (own, theirs))
    else:
        same = torch.equal(own, theirs)
    if not same:
        raise Failed("the default's scores differ from the authors'")


def _asked(n: int, graphs: list[Tensor], counts: list[int]) -> int | None:
    """The budget among `n` tokens of which each graph's share, rounded down, is its count, where there is one."""
    fits = (k for k in range(1, n) if all(k * len(graph) // n == count for graph, count in zip(graphs, counts)))
    return next(fits, None)


def _picks(case: Case, name: str, indices: Tensor) -> None:
    if case.get("dtype", "float32") == "float32":
        case.expect(name, indices)
    else:
        case.expect_nearly(name, indices, HALF_PRECISION_SHARE)


def _scores(case: Case, name: str, score: Tensor) -> None:
    """Scores as floats; in half precision, which other hardware rounds differently, most of them and roughly."""
    try:
        case.expect(name, score)
    except Failed:
        want = torch.from_numpy(case.arrays[name])
        if case.get("dtype", "float32") == "float32" or score.shape != want.shape:
            raise
        near = ((score - want).abs() <= 1e-3 * (want.abs() + want.abs().mean())).double().mean()
        if near < HALF_PRECISION_SHARE:
            raise
        case.notes.append(f"{name}: {near:.1%} agree in {case['dtype']}")


def gprune_tiles(case: Case) -> None:
    """UniPruneBench's wrapper: the first tile is a graph, all others together are another."""
    features = case.input("features")
    tiles, size, _ = features.shape
    flat, side = features.flatten(0, 1), math.isqrt(size)
    image = view(len(flat), 1, {"features": flat}, INTERNVL, Grid(side, side, tiles))
    method = GPrune(**_options(case), compat="uniprune")
    graphs = method.graphs(image)
    counts = [max(1, int(case["keep_ratio"] * len(graph))) for graph in graphs]
    kept = [
        graph[method.select(view(len(graph), count, {"features": flat[graph]}))]
        for graph, count in zip(graphs, counts, strict=True)
    ]
    case.expect("kept_order", torch.cat(kept))  # the wrapper sorts each pool
    case.expect("kept_sorted", ascending(torch.cat(kept)))
    case.expect_setting("selected_true", sum(counts))
    image.keep = _asked(len(flat), graphs, counts) or 0
    if image.keep and not torch.equal(method.select(image), torch.cat(kept)):
        raise Failed("the method puts its parts together differently")


def holov(case: Case) -> None:
    features, keep = case.input("features"), case["keep_num"]
    n, crops = len(features), case["num_crops"]
    signals = {"features": features, "attention": case.input("attention")}
    official = HoloV(crops=crops, alpha=case["alpha_var"], compat="official")
    image = view(n, keep, signals, grid=Grid(1, n))
    merged = official.select(image)
    case.expect("kept_order", merged.anchors)
    case.expect("kept_sorted", ascending(merged.anchors))
    case.expect("out", merged.features)
    check_exact(HoloV(crops=crops, alpha=case["alpha_var"]).select(image), keep, n)


def pool(case: Case) -> None:
    features, tokens = case.input("features"), case["target_tokens"]
    rows, cols = case.get("input_hw") or (None, None)
    n = features.shape[1]
    grid = Grid(rows or n // cols, cols or n // rows) if rows or cols else None
    out = []
    for tile in features:
        image = view(n, tokens, {"features": tile}, grid=grid)
        out.append(Pool(mode=case["mode"], compat="uniprune").select(image).features)
        default = Pool(mode=case["mode"]).select(image)
        if len(default.features) != tokens:
            raise Failed(f"the default makes {len(default.features)} tokens instead of {tokens}")
        squares = all(math.isqrt(number) ** 2 == number for number in (n, tokens))
        if squares and tokens <= n and grid is None and not torch.equal(default.features, out[-1]):
            raise Failed("the default differs on a square picture")
    case.expect("out", torch.cat(out))
    case.expect_setting("selected_true", len(torch.cat(out)))


def tome(case: Case) -> None:
    x, metric = case.input("x"), case.input("metric")
    steps = [r for r in case["r"] if r > 0]
    found: dict[str, list[Tensor]] = {name: [] for name in ("out", "out_metric", "size", "group")}
    for rows, keys in zip(x, metric):
        sizes, group = torch.ones(len(rows)), torch.arange(len(rows))
        for r in steps:
            step = match(keys, r, cls=case["class_token"])
            rows, total = step.merge(rows, sizes)
            keys, sizes = step.merge(keys, sizes)[0], total
            places = torch.empty(len(step.stay) + len(step.leave), dtype=torch.long)
            places[step.stay] = torch.arange(len(step.stay))
            places[step.leave] = step.joined
            group = places[group]
        for name, value in (("out", rows), ("out_metric", keys), ("size", sizes[:, None]), ("group", group)):
            found[name].append(value)
    for name, values in found.items():
        case.expect(name, torch.stack(values))
    case.expect_setting("out_tokens", found["out"][0].shape[0])
    if not case["class_token"] and torch.equal(x, metric):
        _tome_chain(case, x, found["out"])


def _tome_chain(case: Case, x: Tensor, out: list[Tensor]) -> None:
    """The method's own chain, where the case's is one: half of the tokens at each step, down to the budget."""
    n, keep = x.shape[1], len(out[0])
    left, chain = n, []
    while left > keep:
        chain.append(min(left - keep, left // 2))
        left -= chain[-1]
    if chain != case["r"]:
        return
    for rows, want in zip(x, out):
        if not torch.equal(ToMe(order="matching").select(view(n, keep, {"features": rows})).features, want):
            raise Failed("the method's chain differs from its steps")


RUNNERS: dict[str, Runner] = {"gprune": gprune, "holov": holov, "pool": pool, "tome": tome}
TILES: dict[str, Runner] = {"gprune_pre_llm": gprune_tiles}  # by the function that a case of unibench_tiles names
