"""Slots that show no patch (newlines, CLS slots): kept outside of the budget or dropped first, as the user says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import TOLERANCE, built, generate, inputs_of, largest, oracle
from harness import policies as policies_of
from torch import Tensor

import vlmprune
from vlmprune.core.method import Method
from vlmprune.core.recipe import recipe
from vlmprune.core.report import RunReport
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES

WITH_BLANKS = ["llava_next", "llava_next_video", "llava_onevision", "llava_onevision video", "video_llava video"]
METHODS = ["divprune", "hiprune", "fastv@2", "random", "pyramiddrop", "vcast"]
SAMPLES: list[list[int | None]] = [[0], [1]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def with_blanks(name: str, value: str) -> str:
    """The method with the option, in front of its layer."""
    method, at, layer = name.partition("@")
    return f"{method}(blanks={value}){at}{layer}"


def ran(family: str, spec: str, keep: Any) -> tuple[Tensor, Tensor, RunReport]:
    with torch.no_grad(), vlmprune.prune(built(family), spec, keep) as session:
        tokens, logits = generate(built(family), inputs_of(family, SAMPLES))
    return tokens, logits, session.last


def slots_of(family: str, seed: int) -> tuple[set[int], int]:
    """The slots without a patch, and how many have one."""
    patches = FAMILIES[family].patches(seed)
    blank = {number for number, slot in enumerate(patches) if not slot}
    return blank, len(patches) - len(blank)


def test_the_families_have_such_slots() -> None:
    found = {key for key in FAMILIES if any(slots_of(key, seed)[0] for seed in (0, 1))}
    assert found == {*WITH_BLANKS, "video_llava mixed", "llava_onevision mixed"} & set(FAMILIES)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", WITH_BLANKS)
@pytest.mark.parametrize("keep", [0.3, 5])
def test_they_stay_beside_the_budget(family: str, name: str, keep: float | int) -> None:
    """All of them, at each act, and the budget is a share of the others."""
    tokens, logits, report = ran(family, with_blanks(name, "keep"), keep)
    own = recipe(name, keep).on(adapter_for(built(family)).info).acts
    for row, seed in enumerate((0, 1)):
        blank, patches = slots_of(family, seed)
        left = patches
        for act, (_, kept) in zip(own, report.stages, strict=True):
            left = min(left, act.of(patches, None, False).budget(left, patches)) if name != "vcast" else left
            found = set(kept[row][0].tolist())
            assert blank <= found
            if name != "vcast":
                assert len(found - blank) == left
            else:
                assert len(found - blank) == (round(keep * patches) if isinstance(keep, float) else keep)
    due = oracle(family, SAMPLES, inputs_of(family, SAMPLES), tokens, report, policies_of(f"{name}:0.3", family))
    assert largest(logits, due) < TOLERANCE


@pytest.mark.parametrize("family", WITH_BLANKS)
def test_the_others_are_chosen_as_if_there_were_none(family: str) -> None:
    """Where the method drops them anyway, it keeps the same of the others under the same number."""
    kept = ran(family, "hiprune(blanks=keep)", 5)[2].kept, ran(family, "hiprune", 5)[2].kept
    for row, seed in enumerate((0, 1)):
        blank, _ = slots_of(family, seed)
        assert set(kept[0][row][0].tolist()) - blank == set(kept[1][row][0].tolist())


@pytest.mark.parametrize("family", WITH_BLANKS)
def test_they_are_dropped_first(family: str) -> None:
    for name in ("divprune", "fastv@2"):
        for row, seed in enumerate((0, 1)):
            blank, patches = slots_of(family, seed)
            assert not blank & set(ran(family, with_blanks(name, "drop"), 5)[2].kept[row][0].tolist())
            if len({slots_of(family, s)[1] for s in (0, 1)}) == 1:  # room for one of them
                found = ran(family, with_blanks(name, "drop"), patches + 1)[2].kept[row][0].tolist()
                assert len(blank & set(found)) == 1


def test_a_budget_for_each_frame() -> None:
    family = "llava_onevision video"
    blank, _ = slots_of(family, 0)
    report = ran(family, "divprune(blanks=keep)", [4, 2, 6])[2]
    assert [len(kept) for kept in report.by_frame()] == [4, 2, 6] and report.tokens[0][1] == 12 + len(blank)
    assert blank <= set(report.kept[0][0].tolist())


class Looks(Method):
    """Notes what it is shown."""

    name, stage, seen = "looks", "vision", list[tuple[int, int, int]]()

    def select(self, view: Any) -> Tensor:
        self.seen.append((view.n, view.keep, int(view.blank.sum())))
        return torch.arange(view.keep)


def test_the_view_tells_them() -> None:
    blank, patches = slots_of("llava_onevision video", 0)
    for blanks, told in ((None, (patches + len(blank), 5, len(blank))), ("keep", (patches, 5, 0))):
        method = Looks()
        method.blanks = blanks
        method.seen.clear()
        ran("llava_onevision video", method, 5)  # type: ignore[arg-type]
        assert method.seen[0] == told


def test_how_it_is_written_and_refused() -> None:
    text = "divprune(blanks='keep'):0.3"
    assert str(recipe("divprune(blanks=keep):0.3")) == str(recipe(text)) and recipe(str(recipe(text))) == recipe(text)
    with pytest.raises(vlmprune.UserError, match="blanks='yes' must be"):
        recipe("divprune(blanks=yes):0.3")
    for name in ("visionzip", "prumerge", "fuse(divprune)@2", "downsample"):
        with pytest.raises(vlmprune.UserError, match="cannot have blanks='keep'"):
            family = "llava" if name != "downsample" else "qwen2_5_vl"
            method = recipe(name, 0.3).stages[0].method
            method.blanks = "keep"
            vlmprune.prune(built(family), method, 0.3)
