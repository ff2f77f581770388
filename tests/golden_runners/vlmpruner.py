"""Runner of VLM-Pruner: by the default where the authors keep the budget, by `compat="official"` where they do not."""

from __future__ import annotations

import math
from unittest import mock

import torch

from golden_runners.case import LLAVA, QWEN, Case, Failed, acting, check_exact, sequence, view
from vlmprune.core.view import Grid, Tokens
from vlmprune.methods.decoder.vlmpruner import CHANNELS, VLMPruner

TOLERANCE = 1e-4


def vlmpruner(case: Case) -> None:
    before, n, budget = case["sys_len"], case["n_img"], case["budget"]
    keys, hidden = case.input("keys").transpose(0, 1).flatten(1), case.input("hidden")
    tokens, rest = slice(before, before + n), slice(before + n, None)
    signals = {name: Tokens(values[tokens], values[rest]) for name, values in (("keys", keys), ("states", hidden))}
    options = {"pivots": case["pivots"], "threshold": case["threshold"], "batch": case["token_batch"]}
    misses = len(set(case.arrays["kept_sorted"].tolist())) != budget
    method = VLMPruner(**options, compat="official" if misses or "strict" in case.settings else "paper")
    llava, merge = case["family"] == "llava", 1 if case["h"] * case["w"] == n else 2
    # all grids of LLaVA are 24 x 24 there, of which a small case has the first rows
    grid = Grid(24, 24) if llava else Grid(case["h"] // merge, case["w"] // merge)
    image = acting(method, budget, view(n, budget, signals, LLAVA if llava else QWEN, grid))
    wide = case["grid_width_used"] != grid.cols
    fold = VLMPruner(**options, compat="official" if wide else "paper").fold(image)
    if fold[0] != case["grid_width_used"] or not (wide or math.isclose(1 / fold[1], case["norm"], rel_tol=1e-6)):
        raise Failed(f"the grid is folded at {fold[0]} with the diagonal {fold[1]}")
    case.expect_setting("channels", CHANNELS)
    with mock.patch.object(VLMPruner, "fold", lambda self, view: (fold[0], 1 / case["norm"])):
        order, merged = method.order(image, method.likeness(image)), method.select(image)
        exact = VLMPruner(**options).select(image).anchors
    check_exact(exact, budget, n)
    case.expect("expected_order", order)
    # a pivot that the authors take twice stands twice in their sequence
    kept = order.sort().values
    case.expect("kept_sorted", kept)
    case.expect_setting("kept", len(kept))
    case.expect("kept_all", sequence(kept, before, n, len(hidden) - before - n))
    features = merged.features[torch.searchsorted(merged.anchors, kept)]
    case.expect("expected_features", torch.cat([hidden[:before], features, hidden[rest]]), TOLERANCE)
