"""Runner of ApET: before the LLM, inside it, and the port to Video-LLaVA."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from golden_runners.case import LLAVA, QWEN, Case, Skipped, positions, sequence, view
from vlmprune.core.plan import acts_of
from vlmprune.core.view import ImageView, Merged, ModelInfo, Tokens, TowerRows
from vlmprune.methods.farthest import farthest_first
from vlmprune.methods.hybrid import apet as module
from vlmprune.methods.hybrid.apet import ApET

INFOS = {"llava": LLAVA, "qwen": QWEN, "video_llava": ModelInfo("video_llava", 24, 32, has_cls=True)}


def apet(case: Case) -> None:
    if case.get("n_seen", 0) != case.get("n_img", 0):
        raise Skipped("the code for LLaVA-NeXT cuts only the first tile inside the LLM and keeps the others whole")
    {"vision": _before_the_llm, "video": _before_the_llm, "decoder": _inside}[case["stage"]](case)


def _before_the_llm(case: Case) -> None:
    features, starts = case.input("features"), case.input("start")
    cls = case.input("cls") if "cls" in case else [None] * len(features)
    made = [
        _one(case, rows, start, {"rows": TowerRows(rows, own)}, 0)
        for rows, start, own in zip(features, starts, cls, strict=True)
    ]
    case.expect("expected_features", torch.stack([one.features for one in made]), _tolerance(case))
    _compare(case, features, starts)
    if "cls" not in case:
        case.expect("kept_sorted", torch.stack([one.anchors for one in made]))


def _inside(case: Case) -> None:
    hidden, starts, before, n = case.input("features"), case.input("start"), case["sys_len"], case["n_img"]
    states = Tokens(hidden[before : before + n], hidden[before + n :])
    merged = _one(case, states.visual, starts[0], {"states": states}, 1)
    columns = sequence(merged.anchors, before, n, len(states.text))
    new = torch.cat([hidden[:before], merged.features, states.text])
    case.expect("expected_features", new, _tolerance(case))
    case.expect("kept_sorted", merged.anchors[None])
    case.expect("kept_all", columns)
    case.expect("position_ids", positions(_method(case), _info(case), columns)[None])
    _compare(case, states.visual[None], starts)


def _one(case: Case, rows: Tensor, start: Tensor, signals: dict[str, Tokens | TowerRows], act: int) -> Merged:
    """What the method makes of one image at one of its acts, its basis beginning where the authors' did."""
    method, keep = _method(case), case["budget"]
    if case["basis_write"] == "append":  # the budget counts neither the CLS row nor the basis
        keep += case["basis"] + ("cls" in case)
    image: ImageView = view(len(rows), keep, signals, _info(case))
    with mock.patch.object(module, "first", lambda rows: start.long()):
        return method.select(replace(image, act=acts_of(method, keep, image.info)[act]))


def _compare(case: Case, features: Tensor, starts: Tensor) -> None:
    """The steps on the way: the basis, the errors, and the order of the kept tokens."""
    count, ridge = case["basis"], case["ridge"]
    bases = [farthest_first(rows, start.long(), count) for rows, start in zip(features, starts, strict=True)]
    errors = [module.unexplained(rows, rows[basis], ridge) for rows, basis in zip(features, bases, strict=True)]
    orders = [module.top_k(values, case["budget"]) for values in errors]
    case.expect("expected_basis", torch.stack(bases))
    case.expect("expected_errors", torch.stack(errors), _tolerance(case))
    case.expect("expected_order", torch.stack(orders))


def _method(case: Case) -> ApET:
    return ApET(basis=case["basis"], ridge=case["ridge"], basis_write=case["basis_write"])


def _info(case: Case) -> ModelInfo:
    return next(info for family, info in INFOS.items() if case["family"].startswith(family))


def _tolerance(case: Case) -> float:
    """In half precision the authors round what they keep."""
    return 1e-2 if case["dtype"] == "float16" else 1e-4
