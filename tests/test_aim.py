"""Budgets that mean the same for every method: the mean over the layers, or what is left at the end."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from fake_results import fill, make_run
from harness import RAGGED, built, inputs_of

import vlmprune
from vlmprune.bench.compare import build_tables
from vlmprune.bench.flops import visual_per_layer
from vlmprune.bench.plan import Plan, variants_of
from vlmprune.core.act import Act
from vlmprune.core.aim import OutOfReach
from vlmprune.core.budget import FINAL, MEAN, OWN, resolve_keep
from vlmprune.core.errors import UserError
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import recipe
from vlmprune.core.view import ModelInfo
from vlmprune.report.comma_separated import summary
from vlmprune.report.tables import blocks
from vlmprune.tasks import generated_tasks
from vlmprune.testing import FAMILIES

DEEP = ModelInfo("llava", 24, 32, has_cls=True)
KEEPS = (0.6, 0.222)
SIZES = (576, 150)
UNTOLD = "the image or the authors' code decides"


def left_of(acts: tuple[Act, ...], total: int) -> tuple[float, int]:
    """The mean that enters a layer, counted layer by layer, and what is left at the end."""
    stages, now = [], total
    for act in acts:
        own = act.of(total)
        now = own.method.left(own, now, total)  # type: ignore[assignment]
        stages.append((act.layer or 0, now))
    layers = visual_per_layer(DEEP.decoder_layers, total, stages)
    return sum(layers) / len(layers), now


@cache
def reachable(name: str) -> list[tuple[float, int]]:
    """What a method leaves of 576 tokens under budgets of its own."""
    return [left_of(acts_of(vlmprune.METHODS[name](), share / 200, DEEP), 576) for share in range(1, 201)]


def off(kind: str, keep: float, total: int, found: tuple[float, int]) -> float:
    """Tokens by which a budget is missed."""
    return abs(found[0] - keep * total if kind == MEAN else found[1] - resolve_keep(keep, total))


@pytest.mark.parametrize("kind", [MEAN, FINAL])
@pytest.mark.parametrize("name", list(vlmprune.METHODS))
def test_every_built_in_method_meets_it_or_says_that_it_cannot(name: str, kind: str) -> None:
    method = vlmprune.METHODS[name]()
    for keep in KEEPS:
        try:
            acts = acts_of(method, keep, DEEP, budget=kind)
        except OutOfReach as error:
            if UNTOLD in str(error):
                assert any(act.method.left(act, 576, 576) is None for act in acts_of(method, keep, DEEP))
            else:
                assert all(off(kind, keep, 576, found) > 1 for found in reachable(name))
            continue
        assert all(off(kind, keep, total, left_of(acts, total)) <= 1 for total in SIZES)


@pytest.mark.parametrize(("tokens", "kept"), [(192, 166), (128, 98), (64, 30)])
def test_a_mean_is_the_papers_count(tokens: int, kept: int) -> None:
    """FastV's 192, 128 and 64 tokens of 576 (average=True)."""
    (act,) = acts_of(vlmprune.METHODS["fastv"](), tokens, DEEP, budget=MEAN)
    assert act.of(576).budget(576, 576) == kept


def test_what_is_left_at_the_end_is_exact() -> None:
    for name in ("pyramiddrop", "fitprune", "mustdrop", "adaptinfer"):
        for tokens in (192, 64):
            acts = acts_of(vlmprune.METHODS[name](), tokens, DEEP, budget=FINAL)
            assert left_of(acts, 576)[1] == tokens


def test_where_no_layer_sees_more_all_meanings_are_one() -> None:
    for kind in (MEAN, FINAL):
        assert acts_of(vlmprune.METHODS["divprune"](), 0.3, DEEP, budget=kind) == acts_of(
            vlmprune.METHODS["divprune"](), 0.3, DEEP
        )


def test_an_act_without_an_image_has_no_budget_of_its_own() -> None:
    (act,) = acts_of(vlmprune.METHODS["fastv"](), 0.3, DEEP, budget=MEAN)
    with pytest.raises(RuntimeError, match="take it `of`"):
        act.budget(576, 576)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["pyramiddrop", "sparsevlm", "mustdrop", "fitprune", "fastv"])
def test_a_run_has_what_was_asked_of_each_image(family: str, name: str) -> None:
    """Of images of several sizes and numbers; the total of a sample is that of its images."""
    inputs = inputs_of(family, RAGGED)
    sizes = [[FAMILIES[family].slots(seed) for seed in seeds] for seeds in RAGGED]
    with vlmprune.prune(built(family), name, keep=0.7, budget=MEAN) as session:
        built(family)(**inputs)
    assert session.budget == MEAN
    for entering, images in zip(session.last.entering, sizes):
        assert abs(entering - 0.7 * sum(images)) <= len(images)
    with vlmprune.prune(built(family), name, keep=0.7, budget=FINAL) as session:
        built(family)(**inputs)
    for (_, end), images in zip(session.last.tokens, sizes):
        assert abs(end - sum(resolve_keep(0.7, n) for n in images)) <= (len(images) if name == "sparsevlm" else 0)


@torch.no_grad()
def test_all_tokens_are_the_unpruned_model() -> None:
    inputs = inputs_of("llava", RAGGED)
    plain = built("llava")(**inputs).logits
    with vlmprune.prune(built("llava"), "pyramiddrop", 1.0, budget=MEAN):
        assert torch.equal(built("llava")(**inputs).logits, plain)


@torch.no_grad()
def test_a_number_of_tokens_out_of_reach_is_refused_at_the_image() -> None:
    with (
        vlmprune.prune(built("llava"), "fastv@2:mean=1") as session,
        pytest.raises(OutOfReach, match=r"fastv, which first cuts before decoder layer 2 of \d+, cannot meet"),
    ):
        built("llava")(**inputs_of("llava", RAGGED))
    assert not session.last.tokens


@pytest.mark.parametrize(
    "text",
    [
        "pyramiddrop:mean=0.222",
        "divprune:final=[0.5, 64]",
        "fuse(divprune:mean=0.1)@2",
        "random:0.5 > fastv@2:mean=0.5",
    ],
)
def test_recipes_round_trip(text: str) -> None:
    assert str(recipe(text)) == text and recipe(str(recipe(text))) == recipe(text)
    assert recipe("pyramiddrop", 0.222, budget=MEAN) == recipe("pyramiddrop:mean=0.222") != recipe("pyramiddrop:0.222")


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("fastv:average=0.3", {}, "write 0.222, mean=0.222 or final=0.222"),
        ("fastv:mean=3.0", {}, "'3.0' is not a budget"),
        ("fastv:0.3", {"budget": "average"}, "choose own, mean, final"),
        ("fastv:mean=0.3", {"budget": "final"}, "given twice"),
        ("vtw@16", {"budget": "mean"}, "takes no budget"),
        ("divprune:0.5 > fastv:0.5", {"budget": "mean"}, "write it with each of them"),
    ],
)
def test_wrong_words_are_refused(text: str, given: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipe(text, **given)


def test_runs_of_one_setting_may_count_differently() -> None:
    own = make_run("llava", generated_tasks()["synth-ocr"], (), "fastv@2", 0.5)
    mean = replace(own, budget=MEAN)
    assert own.key != mean.key and own.setting == mean.setting


def test_a_plan_counts_by_one_meaning_and_recipes_by_their_own() -> None:
    found = {
        v.text: v.budget for v in Plan(methods=("fastv@2", "pyramiddrop-0.5"), keeps=(0.6,), budget=MEAN).variants()
    }
    assert found["fastv@2:mean=0.6"] == found["downsample:mean=0.6"] == MEAN
    assert found["pyramiddrop:0.5"] == found["vanilla"] == OWN
    assert [v.text for v in variants_of("fastv@2", (0.6,))] == ["fastv@2:0.6"]
    with pytest.raises(UserError, match="choose own, mean, final"):
        Plan(budget="average").check()


def test_tables_keep_meanings_apart(tmp_path: Path) -> None:
    fill(tmp_path, models=["llava"], methods=["random", "divprune"], keeps=[0.25], n=4, tasks=["synth-ocr"])
    (table,) = build_tables(tmp_path)
    other = replace(
        table, rows=tuple(replace(row, budget=MEAN) if row.method == "divprune" else row for row in table.rows)
    )
    assert [block.title for block in blocks(other)] == ["25.0 %", "25.0 %, mean over the layers"]
    assert [[row.method for row in block.pruned] for block in blocks(other)] == [["random"], ["divprune"]]
    assert "A budget mean= counts visual tokens, mean over the layers, for every method." in other.notes()
    assert "divprune,0.25,mean," in summary([other]) and "random,0.25,own," in summary([other])
