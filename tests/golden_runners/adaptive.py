"""Runners of methods whose counts a prompt or a fit decides: MustDrop, AutoPrune and FitPrune, stage by stage."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from golden_runners.case import LLAVA, Case, Failed, Runner, noise, positions, sequence, view
from golden_runners.spatial_merge import SpatialMerge
from vlmprune.core.plan import acts_of
from vlmprune.core.selectors import top_k
from vlmprune.core.view import Grid, ImageView, Merged, Tokens, TowerRows
from vlmprune.methods.cluster import recycle
from vlmprune.methods.decoder import autoprune
from vlmprune.methods.decoder.autoprune import AutoPrune
from vlmprune.methods.decoder.autoprune_curve import keep_shares, mutual_information, simulated
from vlmprune.methods.decoder.fitprune import FitPrune, expendable
from vlmprune.methods.decoder.mustdrop import MustDrop

TOLERANCE = 2e-5
BITS = 1e-4  # of mutual information, in a whole forward


def nearly(what: str, got: Any, want: Any, tolerance: float) -> None:
    """Compare numbers of the JSON file."""
    mine, theirs = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(want, dtype=torch.float64)
    if mine.shape != theirs.shape or not bool(((mine - theirs).abs() <= tolerance * (1 + theirs.abs())).all()):
        raise Failed(f"{what}: {mine.tolist()} instead of {theirs.tolist()}")


# ---------------------------------------------------------------------- MustDrop


def mustdrop(case: Case) -> None:
    {"vision_merge": _vision_merge, "e2e_toy": _filters}[case["kind"]](case)


def _vision_merge(case: Case) -> None:
    features, side = case.input("features"), case["side"]
    if case["window"] != [3, 3]:
        raise Failed(f"windows of {case['window']}")
    n, method = side * side, SpatialMerge(threshold=case["threshold"])
    image = view(n, n - 1, {"rows": TowerRows(features[1:], features[:1])}, grid=Grid(side, side))
    merged = method.select(image)
    new = torch.arange(len(merged.features)) < (n - len(merged.features)) // 8
    case.expect("merged", torch.cat([features[:1], merged.features]), TOLERANCE)
    case.expect("size", torch.cat([torch.ones(1), 1.0 + 8 * new])[:, None], TOLERANCE)
    case.expect_setting("n_out", 1 + len(merged.features))


def _filters(case: Case) -> None:
    before, n, after = case["sys_len"], case["n_img"], case["n_text"]
    method = MustDrop(global_threshold=case["global_thr"], individual_threshold=case["individual_thr"])
    keys, depth = case.input("key_set"), case["n_layers"]
    case.expect_setting("n_key", len(keys))
    case.expect_setting(
        "pruning_layers", [layer - 1 for layer in method.schedule(replace(LLAVA, decoder_layers=depth))]
    )
    memory: dict[str, Any] = {"keys": keys}
    slots = torch.arange(n)
    columns: dict[int, Tensor] = {}
    entering: list[int] = []
    for layer in range(depth):
        entering.append(before + len(slots) + after)
        if layer not in case["pruning_layers"]:
            continue
        rows = case.input(f"attn_text_vis_{layer}").mean(0)
        signals = {"text": rows, "cls": torch.zeros(len(slots))}
        image = ImageView(len(slots) - 1, slots, None, LLAVA, signals, memory=memory)
        stage = case["important_per_stage"][len(columns)]
        passing = _passing(method, image)
        if passing != stage["important"] and len(slots) > 1:
            raise Failed(f"after layer {layer} the filter lets {passing} pass instead of {stage['important']}")
        alone = replace(method, key_share=0.0).select(image)
        if alone.tolist() != passing and (passing or len(alone) != 1):
            raise Failed(f"after layer {layer} {alone.tolist()} stay without key tokens, and {passing} pass the filter")
        kept = method.select(image)
        columns[layer] = sequence(kept, before, len(slots), after)
        case.expect(f"kept_all_{layer}", columns[layer])
        case.expect(f"position_ids_after_{layer}", positions(method, LLAVA, columns[layer]))
        slots = slots[kept]
    case.expect_setting("n_in_per_layer", entering)
    passed = [length - before - after for length in [*entering[1:], before + len(slots) + after]]
    nearly("avg_tokens", sum(passed) / depth, case["avg_tokens"], TOLERANCE)
    if len(case.input("inputs_embeds")) != entering[0] or len(case.input("final_hidden")) != entering[-1]:
        raise Failed("other lengths before or after the layers")
    _cache(case, columns, entering)


def _passing(method: MustDrop, image: ImageView) -> list[int]:
    """What the filter lets pass, of two or more tokens: what stays whichever token is the key token.

    Without any key token it cannot be seen where it lets none pass: the authors then keep none, the library the best.
    """
    ends = [replace(image, memory={"keys": slot}) for slot in (image.slots[:1], image.slots[-1:])]
    first, last = (set(method.select(view).tolist()) for view in ends)
    return sorted(first & last)


def _cache(case: Case, columns: dict[int, Tensor], entering: list[int]) -> None:
    """Rows of each layer's cache that are left: what is kept by its own cut and all later ones."""
    left = []
    for layer, length in enumerate(entering):
        rows = torch.arange(length)
        if layer >= min(columns):
            for at in sorted(columns):
                rows = rows[columns[at]] if at >= layer else rows
        left.append(len(rows))
        if f"cache_rows_{layer}" in case:
            case.expect(f"cache_rows_{layer}", rows)
    case.expect_setting("cache_len_per_layer", left)


# ---------------------------------------------------------------------- AutoPrune


def auto(case: Case) -> None:
    {"e2e_toy": _auto_forward, "unit_mi_schedule": _schedules}[case["kind"]](case)


def _schedules(case: Case) -> None:
    heads = mutual_information(case.input("attn"))
    nearly("mi_per_head", heads, case["mi_per_head"][: len(heads)], BITS / 50)  # one changed number shows
    case.compared_settings.add("mi_per_head")
    depth, first, tokens = case["n_layers"], case["v_after_layer0"], case["n_img"]
    for schedule in case["schedules"].values():
        steepness = max(case["k0"] - case["gamma"] * schedule["mi"], 0.0)
        nearly("dynamic_k", steepness, schedule["dynamic_k"], TOLERANCE)
        shares = keep_shares(steepness, case["target"], first, tokens, depth, case["x0"])
        nearly("keep_percent", shares, schedule["keep_percent"], 1e-9)
        counts = [min(-int(-((first - 1) * share) // 1), first) for share in shares]
        nearly("keep_counts", counts, schedule["keep_counts_if_pool_is_V1"], 0)
        total = simulated(shares, first, tokens)
        nearly("simulated_total", total, schedule["simulated_total"], 0)
        nearly("simulated_avg", total / depth, schedule["simulated_avg"], 1e-9)


def _auto_forward(case: Case) -> None:
    before, tokens, after = case["sys_len"], case["n_img"], case["n_text"]
    info = replace(LLAVA, decoder_layers=case["n_layers"])
    method = AutoPrune(x0=case["x0"], k0=case["k0"], gamma=case["gamma"], lam=case["lam"])
    acts = acts_of(method, case["target"], replace(info, decoder_layers=case["n_layers"] + 1))  # the last too
    memory: dict[str, Any] = {}
    n, entering, merges, kept = tokens, [], 0, []
    for layer, act in enumerate(acts):
        entering.append(n)
        hidden, rows = case.input(f"hidden_out_{layer}"), case.input(f"attn_text_vis_{layer}")
        text: Any = act.needs["text"]
        heads = text.heads
        signals: dict[str, Any] = {
            "text": rows if heads == "all" else rows.mean(0),
            "cls": case.input("cls_attn") if layer == 0 else None,
            "states": Tokens(hidden[before : before + n], hidden[before + n :]),
        }
        keep = act.budget(n, tokens)
        image = ImageView(keep, torch.arange(n), None, info, signals, total=tokens, memory=memory, act=act)
        if layer < 2:
            nearly(f"mi_per_head_layer{layer}", mutual_information(rows), case[f"mi_per_head_layer{layer}"], BITS)
        if layer == 0:
            nearly("mi_layer0_used", method.information(image) / after, case["mi_layer0_used"], BITS)
        if layer == 1:
            information = method.information(image)
            nearly("mi_sum_layer1", information, case["mi_sum_layer1"], BITS)
            nearly("dynamic_k", max(case["k0"] - case["gamma"] * information, 0.0), case["dynamic_k"], BITS)
            shares = keep_shares(case["dynamic_k"], case["target"], n, tokens, len(acts), case["x0"])
            nearly("keep_percent", shares, case["keep_percent"], 1e-9)
        with mock.patch.object(autoprune, "recycle", partial(recycle, noise=noise(case, f"noise_{merges}"))):
            chosen = method.select(image) if keep < n else torch.arange(n)
        merges += isinstance(chosen, Merged)
        anchors = chosen.anchors if isinstance(chosen, Merged) else chosen
        made = hidden[sequence(anchors, before, n, after)]
        if isinstance(chosen, Merged):
            made[before : before + len(anchors)] = chosen.features
        if layer == 0:
            case.expect("kept_all_0", sequence(anchors, before, n, after))
            case.expect_setting("v_after_layer0", len(anchors))
        else:
            kept.append(int(chosen.unchanged.sum()) if isinstance(chosen, Merged) else len(anchors))
        n = len(anchors)
        _after(case, layer, made, last=act is acts[-1])
    case.expect_setting("visual_tokens_per_layer_in", entering)
    case.expect_setting("visual_tokens_out_last", n)
    case.expect_setting("keep_counts", kept)
    nearly("avg_tokens", sum([*entering[1:], n]) / len(acts), case["avg_tokens"], TOLERANCE)
    d, inner, lengths = case["dim"], case["inter"], [before + count + after for count in entering]
    case.expect_setting("flops_total", sum(4 * m * d * d + 2 * m * m * d + 3 * m * d * inner for m in lengths))
    if len(case.input("inputs_embeds")) != lengths[0]:
        raise Failed("inputs_embeds has another length")


def _after(case: Case, layer: int, made: Tensor, last: bool) -> None:
    """Compare what goes on after a layer."""
    if f"after_{layer}" in case:
        case.expect(f"after_{layer}", made, TOLERANCE)
    if f"n_after_{layer}" in case:
        case.expect(f"n_after_{layer}", torch.tensor(len(made)))
    if last:
        case.expect("final_hidden", made, TOLERANCE)


# ---------------------------------------------------------------------- FitPrune


def fit(case: Case) -> None:
    if case.get("kind") == "fit_step":
        cross, own = case.input("cross"), case.input("self")
        whole = case["total_cross"], case["total_self"]
        by_cross, by_self, gone = expendable(cross, own, whole, case["alpha"])
        case.expect("deleted_sorted", gone)
        case.expect_setting("del_num_cross", by_cross)
        case.expect_setting("del_num_self", by_self)
        return
    before, n, after = case["sys_len"], case["n_img"], case["n_text"]
    visual, text = case.input("attn_visual_rows"), case.input("attn_text_rows")
    signals = {"visual": visual.amax(0).mean(0), "text": text.amax(0)}
    method, deleted = FitPrune(), case["delete"]
    kept = view(n, n - deleted, signals)
    case.expect("deleted_as_produced", top_k(-method.score(kept), deleted))
    mask = torch.zeros(before + n + after, dtype=torch.bool)
    mask[sequence(method.select(kept), before, n, after)] = True
    case.expect("keep_mask_all", mask)
    inverted, share = FitPrune(compat="uniprune"), case["unibench_keep_ratio"]
    budget = acts_of(inverted, share, LLAVA)[0].budget(n, n)
    lowest = top_k(-inverted.score(kept), budget)
    case.expect("unibench_kept_as_produced", lowest)
    if inverted.select(view(n, budget, signals)).tolist() != sorted(lowest.tolist()):
        raise Failed("compat='uniprune' keeps other tokens")
    _recipes(case)


def _recipes(case: Case) -> None:
    """Budgets of every act, for each average that the authors' recipes have."""
    for percent, deleted in case["schemes"].items():
        keep, left, counts = case["avg_tokens"][percent] / 576, 576, [576]
        for act in acts_of(FitPrune(), keep, LLAVA):
            left = act.budget(left, 576)
            counts.append(left)
        gone = [before - now for before, now in pairwise(counts)]
        if gone != deleted[:-1]:
            raise Failed(f"recipe {percent}: {gone} deleted instead of {deleted[:-1]}")
        nearly("final_tokens", left - deleted[-1], case["final_tokens"][percent], 0)


RUNNERS: dict[str, Runner] = {"mustdrop": mustdrop, "autoprune": auto, "fitprune": fit}
