"""Runners of V2Drop, PriorTR and CLSE: V2Drop and CLSE stage by stage."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from golden_runners.case import LLAVA, Case, Failed, Runner, sequence, view
from vlmprune.core.plan import acts_of
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.view import Grid, ModelInfo
from vlmprune.methods.decoder.clse import CLSE
from vlmprune.methods.decoder.priortr import PriorTR
from vlmprune.methods.decoder.v2drop import V2Drop
from vlmprune.methods.relevance import EPS, excess
from vlmprune.methods.spectrum import high_pass

INTERNVL = ModelInfo("internvl", encoder_layers=24, decoder_layers=32, has_cls=True)
QWEN2 = ModelInfo("qwen2_vl", encoder_layers=32, decoder_layers=28, has_cls=False)
HALF = 1e-2  # of scores that the authors rounded to float16
SAME = 0.95  # of the indices that were chosen by such scores


def expect_indices(case: Case, name: str, got: Tensor) -> None:
    """Compare indices exactly, or where the authors rounded to float16, nearly all."""
    if case.get("dtype") == "float16":
        case.expect_nearly(name, got, SAME)
    else:
        case.expect(name, got)


# ---------------------------------------------------------------------- V2Drop


def v2drop(case: Case) -> None:
    method, info, stages = V2Drop(), QWEN2 if case["kind"] == "qwen" else LLAVA, case["stages"]
    before, end = case.get("span") or (case["sys_len"], case["sys_len"] + case["n_img"])
    total = n = end - before
    left = torch.arange(len(case.input("prev0" if stages else "hidden_in")))
    if stages and (before, end - before) != (case["sys_len"], case["n_img"]):
        case.notes.append(f"columns {before} to {end - 1}, which the authors prune, stand for the image")
    entering, tolerance = [len(left)], HALF if case.get("dtype") == "float16" else 1e-5
    at = left
    for number, stage in enumerate(stages):
        keep = acts_of(method, float(stages[0]["ratio"]), info)[number].budget(n, total)
        if (n, keep) != (stage["n_in"], stage["keep"]):
            raise Failed(f"{keep} of {n} tokens at stage {number} instead of {stage['keep']} of {stage['n_in']}")
        states = {name: case.input(f"{kind}{number}") for name, kind in (("before", "prev"), ("after", "hidden"))}
        image = view(n, keep, {name: rows[before : before + n] for name, rows in states.items()}, info)
        case.expect(f"scores{number}_expected", method.score(image), tolerance)
        columns = sequence(method.select(image), before, n, len(left) - before - n)
        expect_indices(case, f"kept_all{number}", columns)
        if number == 0:
            at = _position_ids(case, columns, len(left), before, n)
        left, n, at = left[columns], keep, at[..., columns]
        expect_indices(case, f"position_ids{number}", at)
        entering.append(len(left))
    expect_indices(case, "kept_original", left)
    bounds = [0, *(stage["layer"] for stage in stages), case["layers"]]
    spans = zip(entering, pairwise(bounds), strict=True)
    case.expect("n_after_layer", [size for size, (begin, stop) in spans for _ in range(begin, stop)])
    if V2Drop().positions(info) != "original":
        raise Failed("positions are re-numbered")


def _position_ids(case: Case, columns: Tensor, length: int, before: int, n: int) -> Tensor:
    """Position ids of the whole prompt: 0, 1, ..., or M-RoPE's three, of a grid whose width only these ids tell.

    Args:
        columns: those that the first stage leaves.
    """
    if case.input("position_ids0").ndim == 1:
        return torch.arange(length)
    _, rows, cols = case.input("position_ids0") - before
    kept = zip((columns - before).tolist(), rows.tolist(), cols.tolist(), strict=True)
    width = next(((i - col) // row for i, row, col in kept if 0 <= i < n and row), n)
    own, text = torch.arange(n), torch.arange(length - before - n)
    image = torch.stack([own * 0, own // width, own % width])
    after = (image.max() + 1 + text).expand(3, -1)
    return torch.cat([torch.arange(-before, 0).expand(3, -1), image, after], dim=1) + before


# ---------------------------------------------------------------------- PriorTR


def priortr(case: Case) -> None:
    kind, n = case["kind"], case["n_img"]
    info = {"llava": LLAVA, "internvl": INTERNVL}.get(kind, QWEN2)
    method = PriorTR(
        query=case["query_aggregation"], null_row=case["null_row"], heads=case["head_aggregation"],
        threshold=case.get("score_threshold"),
    )  # fmt: skip
    if method.null_row != PriorTR().null(info):
        raise Failed(f"null row {PriorTR().null(info)} instead of {method.null_row}")
    rows = case.input("attn_text_rows")
    keep = case["keep_tokens"] or int(n * case["keep_ratio"])
    image = view(n, min(keep, n), {"text": rows if method.heads == "max" else rows.mean(0)}, info)
    score, kept = method.score(image), method.select(image) if keep else torch.arange(0)
    if kind == "qwen_2f":  # the library reads no second forward; the formula is the same
        prior = case.input("prior_attention")
        score = excess(method.share(image, method.question(info, rows.shape[1])), prior / (prior.sum() + EPS))
        kept = ascending(top_k(score, keep))
    half = case.get("dtype") == "float16"
    case.expect("expected_scores", score, HALF if half else 1e-5)
    expect_indices(case, "kept_sorted", kept)
    expect_indices(case, "kept_all_sorted", sequence(kept, case["sys_len"], n, case["n_text"]))
    case.expect_setting("keep_num", len(kept))
    if not half:
        case.expect_setting("n_positive", int((score > 0).sum()))


# ---------------------------------------------------------------------- CLSE

DEPTHS = {(1, 11, 21): 32, (1, 10, 19): 28, (1, 13, 24): 36, (3,): 32}  # by the layers of the cuts
FAMILIES = {"llava": "llava", "qwen": "qwen3_vl", "video": "video_llava"}


def clse(case: Case) -> None:
    layers, before = tuple(case["prune_layers"]), case["sys_len"]
    total = case.input("attn_last_row0").shape[1] - before - case["n_text"]
    info = ModelInfo(FAMILIES[case["family"]], 24, DEPTHS[layers], has_cls=True)
    method = CLSE(cutoff=case["cutoff"], temp=case["temp"], fft="3d" if case.get("fft_3d") else "2d")
    acts = acts_of(method, case["keep_tokens"] if case.get("keep_tokens") else float(case["retain_ratio"]), info)
    case.expect_setting("prune_layers", [act.layer for act in acts])
    case.expect_setting("ref_layer", layers[0] - 1)  # whose input and output are compared
    states = {"before": case.input("z_ref"), "after": case.input("z_cur")}
    grid = None if case.get("nogrid") else Grid(case["h"], case["w"], case["t"])
    tolerance = HALF if case.get("dtype") == "float16" else 1e-4
    for name, suffix in (("before", "ref"), ("after", "cur")) if grid else ():
        spectrum = high_pass(states[name], grid, torch.arange(total), method.cutoff, method.fft)
        case.expect(f"expected_spectral_{suffix}", spectrum, tolerance)
    counts, left = [], torch.arange(total)
    for number, (act, due) in enumerate(zip(acts, case["keep"], strict=True)):
        n = len(left)
        row = case.input(f"attn_last_row{number}").mean(0)[before : before + n]
        keep = act.budget(n, total) if due else 0  # ours leaves a token at least
        image = replace(view(n, keep, {"attention": row, **states}, info, grid), act=act)
        if number == 0:
            case.expect("expected_factor", method.gate(image), tolerance)
        case.expect(f"expected_score{number}", method.score(image), tolerance)
        chosen = method.select(image)
        case.expect(f"kept_local{number}", chosen)
        left = left[chosen]
        case.expect(f"kept_orig{number}", left)
        counts.append(len(left))
    case.expect_setting("keep", counts)


RUNNERS: dict[str, Runner] = {"v2drop": v2drop, "priortr": priortr, "clse": clse}
