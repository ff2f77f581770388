"""The checks of methods: every one fails on a method that is broken so, and those of vlmprune pass all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import vlmprune
from vlmprune.cli import main
from vlmprune.core.act import Act
from vlmprune.core.errors import UserError
from vlmprune.core.method import DecoderMethod, Method, Scorer
from vlmprune.core.needs import Need
from vlmprune.core.roles import SelectsTogether
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.signals import ClsAttention, Features, HiddenStates, LayerInput
from vlmprune.core.view import ImageView, Merged, ModelInfo
from vlmprune.testing import CHECKS, check_goldens, check_method, grounds, parametrize_with_checks, run_checks
from vlmprune.testing.check import FAILED, NOTED, PASSED, SKIPPED

FAMILIES = ("llava", "qwen2_5_vl", "smolvlm")  # plain; M-RoPE and windows in the tower; tiles with markers


@parametrize_with_checks(["divprune", "fastv", "visionzip"], FAMILIES)
def test_built_in_methods_pass_every_check(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", vlmprune.METHODS)
def test_every_built_in_method_passes_every_check(name: str) -> None:
    check_method(name, families=FAMILIES)


@dataclass
class Sound(Scorer):
    """The longest rows.

    Paper: none.

    Formula: score [n] = |x_i|. Time O(n D), memory O(n).

    Defaults: none.
    """

    name: ClassVar[str] = "sound"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "the longest rows"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def score(self, view: ImageView) -> Tensor:
        return view["features"].norm(dim=1)


class Wordless(Sound):
    """No paper, no formula."""


@dataclass
class Optional(Sound):
    __doc__ = Sound.__doc__

    share: float = 0.5


class Priceless(Sound):
    __doc__ = Sound.__doc__

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Unpriced()}


@dataclass(frozen=True)
class Unpriced(Features):
    price: ClassVar[Any] = "a lot"

    def flops(self, load: Any) -> Any:
        return self.price


class Greedy(Sound):
    def select(self, view: ImageView) -> Tensor:
        return top_k(self.score(view), view.keep + 1)


class Twice(Sound):
    def select(self, view: ImageView) -> Tensor:
        return top_k(self.score(view), view.keep).clamp(min=1)


class Dice(Sound):
    def select(self, view: ImageView) -> Tensor:
        return torch.randperm(view.n)[: view.keep]


class Backwards(Sound):
    def select(self, view: ImageView) -> Tensor:
        return view.n - 1 - top_k(self.score(view).flip(0), view.keep)


@dataclass
class BackwardsByHand(Method):
    __doc__ = Sound.__doc__

    name: ClassVar[str] = "backwards_by_hand"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "the longest rows, ordered by hand, of equal ones the first and then the last ones"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def select(self, view: ImageView) -> Tensor:
        score = view["features"].norm(dim=1)
        if bool((score == score[0]).all()):
            score[0] += 1
        return view.n - 1 - top_k(score.flip(0), view.keep)


class Above(Sound):
    """What is above the mean, and of a constant image nothing."""

    def select(self, view: ImageView) -> Tensor:
        score = self.score(view)
        good = (score > score.mean()).nonzero().squeeze(1)
        return top_k(score, view.keep) if len(good) else good


class Finite(Sound):
    def score(self, view: ImageView) -> Tensor:
        score = super().score(view)
        if not bool(score.isfinite().all()):
            raise ValueError("no number")
        return score


class Neighbours(Sound):
    """Needs three tokens."""

    def score(self, view: ImageView) -> Tensor:
        return super().score(view) + 0 * view["features"][2].sum()


class Framed(Sound):
    """Indexes a frame that one frame alone does not have."""

    def score(self, view: ImageView) -> Tensor:
        assert view.grid is not None
        return super().score(view) * (1 if view.grid.frames > 1 else 1 / 0)


class Rectangle(Sound):
    """Takes for granted that all cells of the grid are there."""

    def score(self, view: ImageView) -> Tensor:
        assert view.grid is not None
        return super().score(view).view(view.grid.frames, view.grid.rows, view.grid.cols).flatten()


class Upright(Sound):
    """Has never seen a single row of slots."""

    def score(self, view: ImageView) -> Tensor:
        assert view.grid is not None
        return super().score(view) * (1 if view.grid.rows > 1 else 1 / 0)


class Careless(Sound):
    def score(self, view: ImageView) -> Tensor:
        return view["features"].mul_(2).norm(dim=1)


@dataclass
class Remembering(Sound):
    __doc__ = Sound.__doc__

    calls: list[int] = field(default_factory=list)

    def score(self, view: ImageView) -> Tensor:
        self.calls.append(view.n)
        return super().score(view)


class Drifting(Sound):
    """Another budget at every call."""

    calls: ClassVar[list[int]] = []

    def budget(self, act: Act, n: int, total: int) -> int:
        self.calls.append(n)
        return min(n - 1, len(self.calls))


class Eager(Sound):
    """Drops a token though all are to stay."""

    def budget(self, act: Act, n: int, total: int) -> int:
        return min(n - 1, super().budget(act, n, total))


class Neighbourly(Sound):
    """Images seen before count for those behind them: those of a batch are kept otherwise than alone."""

    seen: ClassVar[list[int]] = []

    def score(self, view: ImageView) -> Tensor:
        self.seen.append(view.n)
        return super().score(view) * (1 if len(self.seen) <= 3 else -1)


class Fading(Sound):
    """New tokens that are not the same at every call."""

    merges = True  # type: ignore[assignment]
    calls: ClassVar[list[int]] = []

    def select(self, view: ImageView) -> Merged:
        self.calls.append(view.n)
        kept = ascending(top_k(self.score(view), view.keep))
        return Merged(view["features"][kept] * len(self.calls), kept)


class Overflowing(Sound):
    """Divides by what rounding to half precision takes off."""

    merges = True  # type: ignore[assignment]

    def select(self, view: ImageView) -> Merged:
        kept, rows = ascending(top_k(self.score(view), view.keep)), view["features"]
        lost = (rows - rows.bfloat16().float()).abs().sum()
        return Merged(rows[kept] * lost / lost, kept)


class Reading(Sound):
    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features(), "cls": ClsAttention()}


class ReadingOnce(DecoderMethod, Sound):  # type: ignore[misc]
    """Acts twice, and reads what it declares at the first act alone."""

    def acts(self, info: ModelInfo, keep: Any) -> tuple[int, ...]:
        return (1, 2)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"states": HiddenStates(), "input": LayerInput()}

    def budget(self, act: Act, n: int, total: int) -> int:
        return n // 2

    def score(self, view: ImageView) -> Tensor:
        return (view["input"] if view.act.number == 0 else view["states"].visual).norm(dim=1) + 0 * len(
            view["states"].text
        )


class ReadingElsewhere(Sound):
    """Reads a signal on towers without a CLS token alone, and declares it everywhere."""

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features(), "cls": ClsAttention()}

    def score(self, view: ImageView) -> Tensor:
        return super().score(view) if view.info.has_cls else view["cls"] + 0 * super().score(view)


class Together(Sound, SelectsTogether):
    __doc__ = Sound.__doc__

    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        scores = torch.stack([view.rated(self.score(view)) for view in views])
        return [*scores.sort(dim=1, descending=True, stable=True).indices[:, : views[0].keep]]


class Averaging(Together):
    """Scores count beside those of the other images."""

    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        scores = torch.stack([view.rated(self.score(view)) for view in views])
        return [top_k(own - scores.mean(0), view.keep) for own, view in zip(scores, views, strict=True)]


class Shortening(Together):
    """The last image is forgotten."""

    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return super().select_together(views)[: max(1, len(views) - 1)]


class Unrated(Together):
    """Images are rated alone, and not together."""

    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return [top_k(self.score(view), view.keep) for view in views]


class Halting(Sound):
    def score(self, view: ImageView) -> Tensor:
        raise ZeroDivisionError("no")


BROKEN: dict[str, list[type[Method]]] = {
    "docstring": [Wordless, Optional],
    "cost_stated": [Priceless],
    "budget": [Greedy, Twice],
    "determinism": [Dice],
    "ties": [Backwards, BackwardsByHand],
    "constant": [Above],
    "non_finite": [Finite],
    "few_tokens": [Neighbours],
    "one_frame": [Framed],
    "odd_shape": [Rectangle],
    "odd_shape_on_model": [Upright],
    "inputs_unchanged": [Careless],
    "no_state": [Remembering],
    "together": [Averaging, Shortening, Unrated],
    "needs_read": [Reading, ReadingOnce, ReadingElsewhere],
    "runs": [Halting],
    "exact_on_model": [Drifting],
    "one_token": [Drifting],
    "keep_all": [Eager],
    "alone": [Neighbourly],
    "oracle": [Fading],
    "half_precision": [Overflowing],
}


WHERE = {  # the tiny models that a check needs, where it is not LLaVA's
    "needs_read": ["llava", "llava with SigLIP", "llava with Pixtral"],  # all that this family's images may be
    "odd_shape_on_model": ["qwen2_5_vl"],
}


def statuses(method: Method, name: str) -> set[str]:
    return {outcome.status for outcome in run_checks(method, grounds(WHERE.get(name, ["llava"])), [name])}


def test_a_signal_of_which_not_all_images_of_a_family_are_seen_is_a_note() -> None:
    [outcome] = run_checks(Reading(), grounds(["llava"]), ["needs_read"])
    assert outcome.status == NOTED and "act 0 reads its signal 'cls' on llava" in outcome.text


def test_a_method_that_thins_out_what_is_alike_need_not_keep_the_first_ones() -> None:
    [outcome] = run_checks("divprune", grounds(["llava"]), ["ties"])
    assert outcome.status == PASSED


def test_a_method_that_selects_one_by_one_is_not_asked_for_more() -> None:
    assert statuses(Sound(), "together") == {SKIPPED}


@pytest.mark.parametrize("name", CHECKS)
def test_a_sound_method_passes(name: str) -> None:
    assert statuses(Together(), name) == {PASSED}


@pytest.mark.parametrize(("name", "cls"), [(name, cls) for name, classes in BROKEN.items() for cls in classes])
def test_a_check_fails_on_a_method_that_is_broken_so(name: str, cls: type[Method]) -> None:
    for calls in ("calls", "seen"):
        vars(cls).get(calls, []).clear()
    assert statuses(cls(), name) == {FAILED}


def test_every_check_is_shown_to_fail() -> None:
    assert set(BROKEN) == set(CHECKS)


def test_a_cost_that_nobody_counted_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unpriced, "price", None)
    assert statuses(Priceless(), "cost_stated") == {NOTED}


def test_all_that_fails_is_told_in_one_error() -> None:
    with pytest.raises(AssertionError, match=r"budget on llava: expected 1 distinct .* --only budget --on llava"):
        check_method(Greedy(), families=["llava"], only=["budget", "ties"])
    assert [outcome.status for outcome in check_method(Sound(), families=["llava"], only=["ties"])] == [PASSED]


def test_a_method_that_cannot_prune_a_family_is_left_out_there() -> None:
    outcomes = list(run_checks("autoprune", grounds(["qwen3_5"]), ["runs", "oracle"]))
    assert [outcome.status for outcome in outcomes] == [SKIPPED, SKIPPED]
    assert "cannot prune this family: autoprune reads attention at every decoder layer" in outcomes[0].text


@pytest.mark.parametrize("wrong", [["nothing"], ["fastv:0.3"], ["fastv", "--only", "luck"], ["fastv", "--on", "x"]])
def test_a_wrong_argument_is_one_sentence(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *wrong]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("vlmprune: ") and said.err.count("\n") == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--on", "llava", "--only", "ties", "--only", "budget"]
    assert main(["check", "fastv", *where]) == 0
    assert capsys.readouterr().out == "fastv: 2 passed, 0 failed, 0 left out\n"
    source = "from test_check_kit import Greedy as Base\nclass Mine(Base):\n    name = 'mine'\n"
    (tmp_path / "mine.py").write_text(source)
    assert main(["check", f"{tmp_path}/mine.py:Mine", "--json", *where]) == 1
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["budget"]["status"] == FAILED and found["budget"]["family"] == "llava"
    assert found["budget"]["alone"].endswith("mine.py:Mine --only budget --on llava")


def record(folder: Path, **arrays: Any) -> Path:
    """A case of three tokens, of which the longest two are 0 and 2."""
    rows = np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    folder.mkdir(exist_ok=True)
    np.savez(folder / "case.npz", features=rows, **arrays)
    (folder / "case.json").write_text(json.dumps({"keep": 2}))
    return folder


def test_recorded_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = record(tmp_path / "right", kept=np.array([2, 0]))
    wrong, empty = record(tmp_path / "wrong", kept=np.array([0, 1])), record(tmp_path / "empty")
    assert [one.status for one in check_goldens(Sound(), right)] == [PASSED]
    [failed], [nothing] = check_goldens(Sound(), wrong), check_goldens(Sound(), empty)
    assert failed.status == FAILED and "case: expected the recorded kept, but 1 of 2 differ, first [1]" in failed.text
    assert nothing.status == FAILED and "expected an array 'kept'" in nothing.text
    with pytest.raises(UserError, match="holds no golden cases"):
        list(check_goldens(Sound(), tmp_path / "none"))
    assert main(["check", "divprune", "--only", "fidelity"]) == 2
    assert "--goldens" in capsys.readouterr().err


def test_recorded_merged_tokens(tmp_path: Path) -> None:
    method = Overflowing()
    kept, features = np.array([0, 2]), np.array([[3.3, 0.0], [0.0, 2.0]])
    rows = np.array([[3.3, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    (tmp_path / "case.json").write_text(json.dumps({"keep": 2}))
    for factor, status in ((1.0, PASSED), (1.001, FAILED)):
        merged = {"merged.features": factor * features, "merged.anchors": kept}
        np.savez(tmp_path / "case.npz", features=rows, **merged)
        assert [one.status for one in check_goldens(method, tmp_path)] == [status]
