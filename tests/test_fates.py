"""What became of each slot: reported for every method that merges, and drawn by `vlmprune.overlay`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import vlmprune
from vlmprune.author import Method
from vlmprune.core.errors import UserError
from vlmprune.core.fates import DROPPED, PLACELESS, UNTOLD, Fate, Step
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import recipe
from vlmprune.core.view import Grid, ImageView, Merged, ModelInfo
from vlmprune.methods.members import mostly, owned
from vlmprune.testing import FAMILIES, prompt

INFO = ModelInfo("llava", 5, 8, has_cls=True)
# Every built-in that makes new tokens, with the options that let it.
MERGING = [
    name
    for name in vlmprune.METHODS
    if not recipe(name, 0.5).stages[0].method.wraps and recipe(name, 0.5).stages[0].method.merges
] + ["tome(inside=True)", "holov(compat='official')", "prunesid(compat='official')", "apet(basis_write='half')"]


@pytest.fixture(scope="module")
def run() -> Any:
    """A tiny LLaVA; what a session reports after a prompt with one picture."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), prompt(family, [[0]])

    def under(spec: str, keep: Any = 0.5) -> vlmprune.runtime.session.Session:
        with torch.no_grad(), vlmprune.prune(model, spec, keep) as session:
            model(**inputs)
        return session

    return under


@pytest.mark.parametrize("spec", MERGING)
def test_a_method_that_merges_says_what_went_where(spec: str, run: Any) -> None:
    last = run(spec).last
    for stage, (_, kept) in enumerate(last.stages):
        joined = last.joined(stage)
        assert not bool((joined == UNTOLD).any())
        standing = torch.unique(joined[joined >= 0]).tolist()
        assert {*standing} <= {*kept[0][0].tolist()}, "tokens stand at kept slots"
    whole, only_drops = last.joined(), ("holov", "prunesid", "recoverable")  # the last one, of so few tokens
    assert bool(((whole >= 0) & (whole != torch.arange(len(whole)))).any()) or spec.startswith(only_drops)


def test_without_merging_slots_are_kept_or_dropped(run: Any) -> None:
    last = run("divprune:0.6 > random@1:0.5", None).last
    for stage, (_, kept) in enumerate(last.stages):
        joined, slots = last.joined(stage), kept[0][0]
        assert torch.equal((joined >= 0).nonzero().squeeze(1), slots) and torch.equal(joined[slots], slots)
    assert set(last.joined()[last.joined() < 0].tolist()) == {DROPPED}


def test_hiprune_names_its_parts(run: Any) -> None:
    last = run("hiprune(alpha=0.5)").last
    parts = last.parts()
    assert list(parts) == ["anchors", "buffers", "registers"] and all(len(slots) for slots in parts.values())
    assert torch.equal(torch.cat([*parts.values()]).sort().values, last.kept[0][0])
    later = run("hiprune(alpha=0.5):0.5 > random@1:0.5", None).last
    assert torch.equal(torch.cat([*later.parts().values()]).sort().values, later.kept[0][0])


def test_what_fusion_gathered_is_reported(run: Any) -> None:
    last = run("hilo", 0.2).last
    [(cut, rows)] = last.gathered.items()
    assert cut == last.stages[0][0] and len(rows[0][0]) and not set(rows[0][0].tolist()) & set(last.kept[0][0].tolist())


def merged(spec: str, rows: torch.Tensor, keep: int, grid: Grid) -> Merged:
    [act] = acts_of(recipe(spec, keep).stages[0].method, keep, INFO)
    return act.method.select(ImageView(keep, torch.arange(len(rows)), grid, INFO, {"features": rows}, act=act))


@pytest.mark.parametrize("spec", ["pool", "tome"])
def test_a_merged_token_is_the_mean_of_its_members(spec: str) -> None:
    rows = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    made = merged(spec, rows, 4, Grid(4, 4))
    assert made.members is not None
    for number, features in enumerate(made.features):
        torch.testing.assert_close(features, rows[made.members == number].mean(0))
        assert made.members[made.anchors[number]] == number


def test_members_by_ownership_and_by_weight() -> None:
    assert owned(4, torch.tensor([2, -1, 0, 2])).tolist() == [2, -1, 0, -1]
    weights = torch.tensor([[0.9, 0.2, 0.0, 0.0], [0.1, 0.7, 0.0, 1.0]])
    assert mostly(weights, torch.tensor([1, 3])).tolist() == [0, 0, -1, 1]


def test_a_fate_follows_tokens_through_several_acts() -> None:
    """0+1 and 2+3 merge; then the second is dropped; a token without a slot takes up 4."""
    start = torch.arange(6)
    merge = Step(
        torch.arange(6), torch.tensor([0, 3, -1]), torch.tensor([0, 3, -1]), True, torch.tensor([0, 0, 1, 1, 2, -1])
    )
    drop = Step(torch.tensor([0, 3, -1]), torch.tensor([0, -1]), torch.tensor([0, 2]))
    fate = Fate(start, [None, merge, drop])
    assert fate.joined(1).tolist() == start.tolist()
    assert fate.joined(2).tolist() == [0, 0, 3, 3, PLACELESS, DROPPED]
    assert fate.joined(3).tolist() == [0, 0, DROPPED, DROPPED, PLACELESS, DROPPED]
    silent = Step(torch.arange(3), torch.tensor([1]), torch.tensor([1]), True)
    assert Fate(torch.arange(3), [silent]).joined(1).tolist() == [UNTOLD, 1, UNTOLD]


def test_reprs_are_short(run: Any) -> None:
    session = run("divprune", 0.5)
    assert re.fullmatch(r"<Session: divprune:0.5 on \w+, closed>", repr(session))
    with session:
        assert repr(session).endswith("open>")
    assert len(repr(session.last)) < 160 and " -> " in repr(session.last)
    assert repr(vlmprune.core.report.RunReport()) == "<RunReport: no prompt with images has run>"


def test_overlay_draws_one_or_several_sessions(run: Any) -> None:
    image = Image.new("RGB", (64, 64), "white")
    assert "overlay" in dir(vlmprune)
    one, other = run("divprune", 0.5), run("pool", 0.25)
    alone = vlmprune.overlay(image, one, answers="yes", question="is it?")
    both = vlmprune.overlay(image, [one, other], answers=["yes", "no"], unpruned="yes")
    assert alone.mode == both.mode == "RGB" and both.width > alone.width


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image": Image.new("RGB", (300, 100))}, "differ in shape"),
        ({"image": [Image.new("RGB", (64, 64))] * 2}, "had 1 images, and 2"),
        ({"answers": ["a", "b"]}, "1 sessions and 2 answers"),
        ({"sample": 3}, "1 samples"),
        ({"session": []}, "nothing to draw"),
        ({"image": np.zeros((64, 64, 3), np.uint8)}, "not of type ndarray"),
        ({"image": ["scene.png"]}, "not of type str"),
    ],
)
def test_overlays_that_would_be_wrong_are_refused(arguments: dict[str, Any], sentence: str, run: Any) -> None:
    given = {"image": Image.new("RGB", (64, 64)), "session": run("divprune", 0.5), **arguments}
    with pytest.raises(UserError, match=sentence):
        vlmprune.overlay(**given)


def test_ratings_are_those_by_which_a_method_chose() -> None:
    """On LLaVA-NeXT, tile by tile: the highest of each tile are kept, and slots without a patch have none."""
    family = FAMILIES["llava_next"]
    with torch.no_grad(), vlmprune.prune(family.build(), "fastervlm(blanks='keep')", keep=0.4) as session:
        session.model(**prompt(family, [[0]]))
    last = session.last
    ratings, kept, cells, grid = last.ratings(), last.kept[0][0], last.cells[0][0], last.grids[0][0]
    assert grid is not None and grid.frames > 1
    assert torch.equal(ratings.isnan(), cells < 0) and bool((cells < 0).any())
    frames = cells // (grid.rows * grid.cols)
    for frame in range(grid.frames):
        own = (frames == frame).nonzero().squeeze(1)
        chosen = own[torch.isin(own, kept)]
        assert torch.equal(chosen, own[ratings[own].topk(len(chosen)).indices].sort().values)


def test_ratings_are_of_the_last_act_that_has_some(run: Any) -> None:
    last = run("divprune:0.6 > fastv@2:0.5", None).last
    (_, first), (_, second) = last.stages
    ratings = last.ratings()
    assert torch.equal((~ratings.isnan()).nonzero().squeeze(1), first[0][0])
    assert torch.equal(second[0][0], ratings.nan_to_num(-1).topk(len(second[0][0])).indices.sort().values)
    assert bool(last.ratings(stage=0).isnan().all()), "divprune rates no token by itself"


def test_a_rating_of_a_wrong_shape_is_a_fault_of_the_method() -> None:
    @dataclass
    class Wrong(Method):
        name: ClassVar[str] = "wrong"
        stage: ClassVar[str] = "vision"

        def select(self, view: ImageView) -> torch.Tensor:
            return view.rated(torch.arange(view.keep, device=view.slots.device))

    family = FAMILIES["llava"]
    model = family.build()
    with vlmprune.prune(model, Wrong(), keep=0.5), pytest.raises(RuntimeError, match="wrong rated tokens"):
        model(**prompt(family, [[0]]))
