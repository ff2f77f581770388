"""Runners of V2Drop, PriorTR and CLSE: replayed stage by stage."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from golden_runners.case import LLAVA, Case, Failed, Runner, sequence, view
from vlmprune.core.plan import acts_of
from vlmprune.core.view import ModelInfo
from vlmprune.methods.decoder.v2drop import V2Drop

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


RUNNERS: dict[str, Runner] = {"v2drop": v2drop}
