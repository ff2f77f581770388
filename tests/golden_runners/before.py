"""Runners of the coverage and subset methods before the LLM: SCOPE, OTPrune, MMTok, PruneSID."""

from __future__ import annotations

import torch
from torch import Tensor

from golden_runners.case import LLAVA, Case, Failed, Runner, view
from golden_runners.vision import HALF_PRECISION_SHARE
from vlmprune.core.plan import acts_of
from vlmprune.core.selectors import ascending
from vlmprune.core.view import TowerRows
from vlmprune.methods.vision.otprune import OTPrune
from vlmprune.methods.vision.scope import Scope


def _expect(case: Case, name: str, got: Tensor) -> None:
    """Compare indices [B, K] or [K]; those of a run in half precision nearly, image by image."""
    if case.get("dtype") != "float16" or case.get("same_in_float32"):
        case.expect(name, got)
        return
    images = torch.arange(len(got) if got.ndim > 1 else 1)[:, None] * (int(got.max()) + 1)
    case.arrays[name] = (case.arrays[name] + (images.numpy() if got.ndim > 1 else 0)).flatten()
    case.expect_nearly(name, (got + (images if got.ndim > 1 else 0)).flatten(), HALF_PRECISION_SHARE)


# ---------------------------------------------------------------------- SCOPE


def scope(case: Case) -> None:
    features, keep = case.input("features"), case["keep_num"]
    images, n = features.shape[:2]
    attention = case.input("cls_attn").sum(1) if case["attention"] else torch.ones(images, n)
    method = Scope(alpha=case["alpha"] if case["attention"] else 0.0, combined=case["combined"])
    signals = [{"rows": TowerRows(rows, None), "attention": a} for rows, a in zip(features, attention, strict=True)]
    views = [view(n, keep, own) for own in signals]
    order = torch.stack([method.picks(image) for image in views])
    case.expect_setting("batch", images)
    _expect(case, "kept_order", order)
    _expect(case, "kept_sorted", torch.stack([method.select(image) for image in views]))
    if not torch.equal(ascending(order), torch.stack([method.select(image) for image in views])):
        raise Failed("select differs from the picks")


# ---------------------------------------------------------------------- OTPrune


def otprune(case: Case) -> None:
    features, method = case.input("features"), OTPrune(gamma=case["gamma"])
    n = len(features)
    act = acts_of(method, case["keep_ratio"], LLAVA)[0]
    keep = method.budget(act, n, n)
    case.expect_setting("keep_num", keep)
    image = view(n, keep, {"features": features})
    kept, order = method.select(image), method.picks(image)
    _expect(case, "kept_order", order)
    _expect(case, "kept_sorted", kept)
    if not torch.equal(ascending(order), kept):
        raise Failed("select differs from the picks")
    # the order in which a Python set of the picks is walked: what the authors feed, and the library does not
    if not torch.equal(ascending(case.input("as_produced")), case.input("kept_sorted")):
        raise Failed("as_produced and kept_sorted are not the same tokens")


RUNNERS: dict[str, Runner] = {"scope": scope, "otprune": otprune}
