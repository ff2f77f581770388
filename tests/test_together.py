"""A batch whose images of one size are selected from together gives what each image gives by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from harness import alone, built, inputs_of, runnable
from harness_methods import REFUSED
from torch import Tensor

import vlmprune
from vlmprune.core.method import Method, PixelMethod
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.report import RunReport
from vlmprune.core.roles import NamesParts, SelectsTogether
from vlmprune.core.view import ImageView, ModelInfo, Selection
from vlmprune.methods import diversity, volume
from vlmprune.methods.hybrid.hilo import HiLo
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.models import adapter_for
from vlmprune.runtime import together

LLAVA = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)
# one size for all images; images of several sizes; tiles of one image that compete apart
WHERE = {"llava": [[0], [1, 2], [3]], "qwen2_5_vl": [[0, 1], [2], [0]], "llava_next": [[0], [1, 0]]}
CAN = [name for name, cls in vlmprune.METHODS.items() if issubclass(cls, SelectsTogether)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def ran(family: str, method: Method | Recipe | str, inputs: Any, keep: Any = 0.4) -> RunReport:
    with torch.no_grad(), vlmprune.prune(built(family), method, keep) as session:
        built(family)(**inputs)
    return session.last


def images(report: RunReport) -> list[dict[str, list[Any]]]:
    """What is told of each image of each sample, in order."""
    places = [(sample, number) for sample, row in enumerate(report.fates) for number in range(len(row))]
    stages = range(len(report.stages))
    return [
        {
            "kept": [kept[sample][number].tolist() for _, kept in report.stages],
            "joined": [report.joined(stage, sample, number).tolist() for stage in stages],
            "parts": [
                {name: slots.tolist() for name, slots in report.parts(stage, sample, number).items()}
                for stage in stages
            ],
            "rated": [report.ratings(stage, sample, number).nan_to_num(-1).tolist() for stage in stages],
        }
        for sample, number in places
    ]


def test_the_greedy_methods_select_together() -> None:
    assert set(CAN) == {"divprune", "cdpruner", "hilo", "fuse"}


@pytest.mark.parametrize("family", WHERE)
@pytest.mark.parametrize("name", [name for name, cls in vlmprune.METHODS.items() if not issubclass(cls, PixelMethod)])
def test_a_batch_is_what_its_samples_are(family: str, name: str) -> None:
    if (name, family) in REFUSED:
        pytest.skip("it cannot prune this family")
    method, samples = vlmprune.METHODS[name](), WHERE[family]
    keep = 0.4 if method.budgeted else None
    batch = images(ran(family, method, inputs_of(family, samples), keep))
    single = [
        image for row in range(len(samples)) for image in images(ran(family, method, alone(family, samples, row), keep))
    ]
    assert len(batch) == sum(map(len, samples))
    for own, due in zip(batch, single, strict=True):
        for what in ("kept", "joined", "parts"):
            assert own[what] == due[what], what
        for rated, wanted in zip(own["rated"], due["rated"], strict=True):
            torch.testing.assert_close(torch.tensor(rated), torch.tensor(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*WHERE, "internvl", "qwen2_5_vl video", "llava_onevision video"])
@pytest.mark.parametrize("spec", [*CAN, "divprune(per=frame)", "cdpruner(per=frame)", "divprune(blanks=keep)"])
def test_images_together_are_the_same_as_one_by_one(family: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, as here each image is in the same batch both times; by the loops that a GPU runs."""
    if not runnable(family, [f"{spec}:0.4"]):
        pytest.skip("it cannot prune this family")
    for module in (diversity, volume):
        monkeypatch.setattr(module, "is_here", lambda rows: False)
    inputs = inputs_of(family, [list(row) for row in WHERE.get(family, [[0], [1], [0]])])
    found = images(ran(family, spec, inputs))

    def one_by_one(parts: Sequence[Any], method: Any) -> list[Any]:
        return [method([part.view()])[0] for part in parts]

    monkeypatch.setattr(together, "_by_size", one_by_one)
    assert images(ran(family, spec, inputs)) == found


@dataclass
class Counting(DivPrune):
    """Notes how many views it is shown at a time, and of which size."""

    name: ClassVar[str] = "counting"
    calls: ClassVar[list[list[tuple[int, int]]]] = []

    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        self.calls.append([(view.n, view.keep) for view in views])
        return super().select_together(views)


@pytest.fixture
def calls() -> list[list[tuple[int, int]]]:
    Counting.calls.clear()
    return Counting.calls


MANY = [[number] for number in range(32)]


def test_32_images_of_one_size_are_one_call_for_each_act(calls: list[Any]) -> None:
    recipe = Recipe((Stage(Counting(), 0.75), Stage(Counting(score_dtype="bfloat16"), 0.5)))
    report = ran("llava", recipe, inputs_of("llava", MANY), None)
    [(n, first)], [(_, last)] = ({*call} for call in calls)
    assert [len(call) for call in calls] == [32, 32]
    assert report.tokens == [(n, last)] * 32 and n > first > last


def test_fusion_and_the_cut_ask_once_for_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []
    plans = HiLo.plans
    monkeypatch.setattr(HiLo, "plans", lambda self, views: planned.append(len(views)) or plans(self, views))
    ran("llava", "hilo", inputs_of("llava", MANY))
    assert planned == [32]


def test_images_of_several_sizes_are_a_call_for_each_size(calls: list[Any]) -> None:
    ran("qwen2_5_vl", Counting(), inputs_of("qwen2_5_vl", [[0, 1], [2], [0], [1]]))
    assert all(len({*call}) == 1 for call in calls)
    assert len({call[0] for call in calls}) == len(calls) > 1 and sum(map(len, calls)) == 5


def test_tiles_of_all_images_are_selected_from_together(calls: list[Any]) -> None:
    report = ran("internvl", Counting(per="frame"), inputs_of("internvl", [[0], [2]]))
    tiles = sum(grid.frames for row in report.grids for grid in row if grid is not None)
    assert sum(map(len, calls)) == tiles and len(calls) < tiles


def test_images_wait_for_others_only_while_there_is_room(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    due = images(ran("llava", DivPrune(), inputs_of("llava", MANY[:5])))
    width, tokens = adapter_for(built("llava")).text_model.config.hidden_size, len(due[0]["joined"][0])
    monkeypatch.setattr(together, "HELD", 2 * 4 * width * tokens)  # features of two images
    assert images(ran("llava", Counting(), inputs_of("llava", MANY[:5]))) == due
    assert [len(call) for call in calls] == [2, 2, 1]


class Short(Counting):
    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return super().select_together(views)[1:]


class Fewer(Counting):
    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        *others, last = super().select_together(views)
        return [*others, last[1:]]


class Stacked(Counting):
    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return [tokens[:, None] for tokens in super().select_together(views)]


class Made(Counting):
    def select_together(self, views: Sequence[ImageView]) -> list[Any]:
        return [vlmprune.author.Merged(view["features"][:1], torch.zeros(1).long()) for view in views]


class Elsewhere(Counting):
    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return [tokens + view.n for tokens, view in zip(super().select_together(views), views, strict=True)]


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Short, "counting was shown 3 images together and answered for 2"),
        (Fewer, "counting returned 2 indices where 3 distinct ones"),
        (Stacked, r"counting returned a tensor of shape \(3, 1\) where 3 indices were due"),
        (Made, "counting returned merged tokens without saying"),
        (Elsewhere, "counting returned 3 indices where 3 distinct ones of 0"),
    ],
)
def test_a_broken_answer_is_a_fault_of_the_method(cls: type[Method], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        ran("llava", cls(), inputs_of("llava", MANY[:3]), 3)


class Overriding(DivPrune):
    """Its `select` would not be called."""

    def select(self, view: ImageView) -> Tensor:
        return torch.arange(view.keep)


class Lonely(Method):
    """Its `select_together` would not be called."""

    name, stage = "lonely", "vision"

    def select_together(self, views: Sequence[ImageView]) -> Sequence[Selection]:
        return [torch.arange(view.keep) for view in views]


class Naming(NamesParts, SelectsTogether):
    name, stage = "naming", "vision"

    def named(self, view: ImageView) -> dict[str, Tensor]:
        return {"first": torch.arange(view.keep)}

    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return [torch.arange(view.keep) for view in views]


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Overriding, "Overriding has a select of its own, so it needs a select_together of its own"),
        (Lonely, "Lonely has select_together, so it must be a SelectsTogether"),
        (Naming, "Naming cannot be both a NamesParts and a SelectsTogether"),
    ],
)
def test_what_would_not_be_called_is_refused(cls: type[Method], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        acts_of(cls(), 0.5, LLAVA)
