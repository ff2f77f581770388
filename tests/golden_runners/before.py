"""Runners of the coverage and subset methods before the LLM: SCOPE, OTPrune, MMTok, PruneSID."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from golden_runners.case import LLAVA, QWEN, Case, Failed, Runner, check_exact, view
from golden_runners.vision import HALF_PRECISION_SHARE
from vlmprune.core.plan import acts_of
from vlmprune.core.selectors import ascending
from vlmprune.core.view import Grid, Merged, TowerRows
from vlmprune.methods.question import keywords
from vlmprune.methods.vision.mmtok import MMTok, padding
from vlmprune.methods.vision.otprune import OTPrune
from vlmprune.methods.vision.prunesid import PruneSID
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


# ---------------------------------------------------------------------- MMTok


def mmtok(case: Case) -> None:
    kind = case.get("kind")
    if kind in ("keywords", "padding"):
        {"keywords": _keywords, "padding": _padding}[kind](case)
        case.compared_settings.add("examples")
        case.input("dummy")
        return
    features, states, words = (case.input(name) for name in ("features", "tower_features", "text_embeds"))
    n, size = len(features), case.get("padding_of")
    method = MMTok(
        alpha=case["alpha"],
        text_temperature=case["tv_temp"],
        image_temperature=case["vv_temp"],
        padded=f"{size[0]}x{size[1]}" if size else None,
    )
    signals = {"features": features, "states": TowerRows(states, None), "words": words}
    side = math.isqrt(n)
    image = view(n, min(n, case["keep_num"]), signals, grid=Grid(side, side) if side * side == n else None)
    if size and not torch.equal(method.padding(image).nonzero().squeeze(1), case.input("padding_indices").long()):
        raise Failed("padding_indices: other tokens show only padding")
    order, kept = method.picks(image), method.select(image)
    _expect(case, "kept_order_reference", order)
    _expect(case, "kept_sorted", kept)
    if not torch.equal(ascending(order), kept):
        raise Failed("select differs from the picks")


def _keywords(case: Case) -> None:
    for text, expected in case["examples"]:
        if keywords(text) != expected:
            raise Failed(f"examples: {keywords(text)!r} instead of {expected!r}")


def _padding(case: Case) -> None:
    for example in case["examples"]:
        width, height, edge = example["size"]
        found = padding(width, height, edge, example["overlap"]).nonzero().squeeze(1).tolist()
        if found != sorted(example["indices"]):
            raise Failed(f"examples: {found} instead of {example['indices']} for {example['size']}")


# ---------------------------------------------------------------------- PruneSID


def prunesid(case: Case) -> None:
    """With the authors' random components, and with the exact ones where both give the same tokens."""
    llava, hidden = case["family"] == "llava", case.input("hidden")
    if not llava and len(hidden) <= 16:
        _too_few(case, hidden)
        return
    found = [_llava_sid(case, *one) for one in _tiles(case, hidden)] if llava else [_qwen_sid(case, hidden)]
    for name in found[0]:
        values = [one[name] for one in found]
        case.expect(name, torch.stack(values) if llava else values[0], 1e-4)
    case.expect_setting("tokens", hidden.shape[1] - 1 if llava else len(hidden))


def _too_few(case: Case, hidden: Tensor) -> None:
    """The authors keep all of so few tokens. The library keeps its budget, whatever that is."""
    n = len(hidden)
    case.expect("kept_sorted", torch.arange(n))
    case.expect_setting("tokens", n)
    case.compared_settings.add("tokens")
    if "abs_v" in case:
        case.input("abs_v")
    for keep in range(1, n):
        check_exact(PruneSID().select(view(n, keep, {"rows": hidden}, QWEN)), keep, n)


def _tiles(case: Case, hidden: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(zip(hidden, case.input("cls_attn").sum(1)[:, 1:], case.input("abs_v"), strict=True))


def _llava_sid(case: Case, hidden: Tensor, attention: Tensor, loadings: Tensor) -> dict[str, Tensor]:
    keep, official, n = case["budget"], PruneSID(compat="official"), len(attention)
    image = view(n, keep, {"rows": TowerRows(hidden[1:], hidden[:1]), "attention": attention})
    picks = torch.cat(official.parts(image, loadings))
    unit = torch.nn.functional.normalize(hidden[1:], dim=1)
    if case["exact_svd_same_groups"]:
        merged = official.select(image)
        assert isinstance(merged, Merged)
        own = merged.anchors[1:]
        features = merged.features
    else:
        own, features = picks, torch.cat([hidden[:1], hidden[1:][picks]])
    case.expect_setting("groups", official.groups(image))
    check_exact(PruneSID().select(image), keep, n)
    return {
        "expected_group": loadings.argmax(1),
        "expected_threshold": torch.tensor(official.threshold(unit @ unit.T, keep, True)),
        "expected_as_produced": torch.cat([torch.zeros(1, dtype=torch.long), 1 + picks]),
        "expected_features": features,
        "kept_sorted": ascending(own),
    }


def _qwen_sid(case: Case, hidden: Tensor) -> dict[str, Tensor]:
    keep, method, loadings, n = case["budget"], PruneSID(), case.input("abs_v"), len(hidden)
    image = view(n, keep, {"rows": hidden}, QWEN)
    picks = torch.cat(method.parts(image, loadings))[:keep]
    unit = torch.nn.functional.normalize(hidden, dim=1)
    threshold = method.threshold(unit @ unit.T, keep, False)
    if abs(threshold - case["threshold"]) > 1e-4 * abs(threshold):
        raise Failed(f"threshold: {threshold} instead of {case['threshold']}")
    case.expect_setting("groups", method.groups(image))
    kept = method.select(image)
    check_exact(kept, keep, n)
    return {
        "expected_group": loadings.argmax(1),
        "expected_as_produced": picks if keep <= 150 else ascending(picks),
        "kept_sorted": kept if case["exact_svd_same_groups"] else ascending(picks),
    }


RUNNERS: dict[str, Runner] = {"scope": scope, "otprune": otprune, "mmtok": mmtok, "prunesid": prunesid}
