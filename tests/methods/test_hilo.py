"""Hi-Lo Prune and `fuse()`: what they keep and fuse, their schedules, and that without fusion they are a plain cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import RAGGED, alone, built, counted, extend, generate, inputs_of, largest, oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.fusion import Fusion
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.registry import METHODS
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.methods.diversity import most_diverse
from vlmprune.methods.hybrid.fuse import Fuse
from vlmprune.methods.hybrid.hilo import HiLo
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.methods.vision.random import Random
from vlmprune.models import adapter_for
from vlmprune.runtime.select import fused_layers

TOLERANCE = 2e-4
LLAVA = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)
QWEN2 = ModelInfo("qwen2_vl", encoder_layers=32, decoder_layers=28, has_cls=False)
QWEN25 = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)
QWEN3 = ModelInfo("qwen3_vl", encoder_layers=27, decoder_layers=36, has_cls=False)
GEMMA = ModelInfo("gemma3", encoder_layers=27, decoder_layers=34, has_cls=False)
FAMILIES = (
    "llava", "llava_next", "llava_onevision", "llava_onevision video", "video_llava mixed", "qwen2_vl", "qwen2_5_vl",
    "qwen2_5_vl video", "qwen3_vl", "qwen3_vl video", "qwen3_5", "internvl", "smolvlm", "gemma3", "paligemma",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, whether or not this version lists them."""
    monkeypatch.setitem(METHODS._targets, "hilo", "vlmprune.methods.hybrid.hilo:HiLo")
    monkeypatch.setitem(METHODS._targets, "fuse", "vlmprune.methods.hybrid.fuse:Fuse")


def view(n: int, keep: int, seed: int = 0, info: ModelInfo = LLAVA, **signals: Tensor) -> ImageView:
    generator = torch.Generator().manual_seed(seed)
    drawn = {"pixels": torch.rand(n, 12, generator=generator), "features": torch.randn(n, 8, generator=generator)}
    return ImageView(keep, torch.arange(n), None, info, {**drawn, **signals}, seed)


def numbers(indices: Tensor) -> set[int]:
    assert len(set(indices.tolist())) == len(indices)
    return set(indices.tolist())


# ------------------------------------------------------------------ selection


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(3, 60),
    part=st.floats(0.02, 0.98),
    share=st.sampled_from([0.1, 0.3, 0.6, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_fine_within_coarse_and_candidates_are_the_rest_of_it(n: int, part: float, share: float, seed: int) -> None:
    keep = min(n - 1, max(1, round(part * n)))
    method, seen = HiLo(share=share), view(n, keep, seed)
    coarse = numbers(method.coarse(seen))
    kept, candidates = numbers(method.select(seen)), numbers(method.candidates(seen))
    assert len(kept) == keep and len(coarse) == max(keep, min(n, round(share * n)))
    assert kept <= coarse and candidates == coarse - kept
    assert coarse == numbers(most_diverse(seen["pixels"], len(coarse)))
    order = method.coarse(seen)
    assert kept == numbers(order[most_diverse(seen["features"][order], keep)])


@pytest.mark.parametrize("n", [5, 40])
def test_with_every_token_coarsely_chosen_it_is_divprune(n: int) -> None:
    seen = view(n, n // 3)
    assert numbers(HiLo(share=1.0).select(seen)) == numbers(DivPrune().select(seen))


def test_how_many_are_coarsely_chosen() -> None:
    assert [len(HiLo().coarse(view(100, 10, info=info))) for info in (LLAVA, QWEN2, QWEN25, QWEN3, GEMMA)] == [
        90, 60, 30, 30, 30,
    ]  # fmt: skip
    assert len(HiLo(alpha=3.0).coarse(view(100, 10))) == 30
    assert len(HiLo(alpha=9.0).coarse(view(100, 20))) == 100
    assert len(HiLo(share=0.1).coarse(view(100, 20))) == 20  # never fewer than are kept


def test_zero_vectors_duplicates_and_constant_images() -> None:
    for pixels in (torch.zeros(20, 12), torch.ones(20, 12), torch.rand(1, 12).expand(20, 12)):
        seen = view(20, 5, pixels=pixels, features=torch.zeros(20, 8))
        assert len(numbers(HiLo(share=0.5).select(seen))) == 5 and len(HiLo(share=0.5).candidates(seen)) == 5


def test_the_edit_by_family() -> None:
    assert [HiLo().fusion(info) for info in (LLAVA, QWEN2, QWEN25, QWEN3, GEMMA)] == [
        Fusion(0.3, tau) for tau in (0.05, 0.1, 0.1, 0.05, 0.05)
    ]
    chosen = HiLo(lambda_=1.0, tau=0.2, top_share=0.5, threshold_over="candidates", positive_only=True)
    assert chosen.fusion(LLAVA) == Fusion(1.0, 0.2, 0.5, "candidates", True)
    assert [HiLo(**off).fusion(LLAVA) for off in ({"lambda_": 0}, {"tau": 1}, {"top_share": 0})] == [None] * 3
    assert HiLo().needs(LLAVA)["pixels"].normalized is False
    assert HiLo(coarse_pixels="normalized").needs(LLAVA)["pixels"].normalized is True


# ------------------------------------------------------------------ schedules


def test_cuts_of_the_supplement() -> None:
    method = HiLo(layers=(4, 8, 16))
    for keep, left in ((0.2, [461, 230, 115]), (0.1, [230, 115, 58]), (64, [256, 128, 64]), (0.5, [576, 576, 288])):
        cuts, n, found = acts_of(method, keep, LLAVA), 576, []
        for cut in cuts:
            n = cut.budget(n, 576)
            found.append(n)
        assert found == left
    assert [cut.layer for cut in acts_of(method, 0.2, LLAVA)] == [4, 8, 16]
    assert [cut.fusion is not None for cut in acts_of(method, 0.2, LLAVA)] == [True, True, False]
    assert acts_of(HiLo(layers=(4, 8), ratio=3.0), 0.1, LLAVA)[0].budget(100, 100) == 30


def test_cuts_are_nested_in_the_order_of_the_fine_stage() -> None:
    method, seen = HiLo(layers=(1, 2, 3), share=0.9), view(50, 20)
    first, second, third = acts_of(method, 5, LLAVA)
    seen = replace(seen, act=first)
    order = method.coarse(seen)[most_diverse(seen["features"][method.coarse(seen)], 20)]
    assert torch.equal(method.select(seen), order)
    assert numbers(method.candidates(seen)) == numbers(method.coarse(seen)) - numbers(order)
    for act, before, keep in ((second, 20, 10), (third, 10, 5)):
        left = torch.sort(order[:before]).values
        later = replace(seen, act=act).part(left, keep, {name: rows[left] for name, rows in seen.signals.items()})
        assert numbers(left[method.select(later)]) == numbers(order[:keep])
        assert numbers(left[method.candidates(later)]) == numbers(order[keep:before])


@pytest.mark.parametrize(
    ("layers", "fused"), [((1, 2, 3), {0: 1, 1: 2}), ((2, 3), {0: 2, 1: 2, 2: 3}), ((3,), {1: 3, 2: 3})]
)
def test_a_layer_before_two_cuts_is_fused_for_the_next(layers: tuple[int, ...], fused: dict[int, int]) -> None:
    adapter = adapter_for(built("llava"))
    plan = Recipe((Stage(HiLo(layers=layers), 0.2),)).on(adapter.info)
    assert fused_layers(adapter, plan.inside) == fused


def test_frames_of_one_image_have_plans_of_their_own() -> None:
    memory: dict[str, Any] = {}
    for seed, method in ((0, HiLo()), (1, Fuse())):
        for frame in (seen := view(12, 4, seed), view(12, 4, seed + 5)):
            part = replace(frame, slots=frame.slots + (0 if frame is seen else 12), memory=memory, total=24)
            fresh = replace(part, memory={})
            assert torch.equal(method.select(part), method.select(fresh))
            assert torch.equal(method.candidates(part), method.candidates(fresh))
        memory.clear()


def test_frames_choose_by_themselves_at_every_cut() -> None:
    with vlmprune.prune(built("internvl"), "hilo(share=0.9)@1,3:0.2") as session:
        built("internvl")(**inputs_of("internvl", [[0]]))
    [(_, [[first]]), (_, [[second]])] = session.last.stages
    assert torch.bincount(first // 9).tolist() == [3, 4, 4] and torch.bincount(second // 9).tolist() == [1, 2, 2]
    assert numbers(second) <= numbers(first) and sorted(session.last.fused) == [0, 1, 2]


# ------------------------------------------------------------------ the wrapper


@pytest.mark.parametrize("selector", [DivPrune(), Random()])
def test_candidates_are_what_the_selector_would_keep_next(selector: Method) -> None:
    seen, method = view(40, 8), Fuse(selector)
    wider = ImageView(20, seen.slots, None, LLAVA, seen.signals)
    assert numbers(method.select(seen)) == numbers(selector.select(seen))
    assert numbers(method.candidates(seen)) == numbers(selector.select(wider)) - numbers(selector.select(seen))
    assert len(method.candidates(seen)) == 12  # 30 % of 40
    assert len(Fuse(selector, share=1.0).candidates(view(40, 8))) == 32


def test_the_wrapper_is_as_its_selector() -> None:
    method = Fuse(HiPrune(alpha=0.3))
    assert method.needs(LLAVA) == method.selector.needs(LLAVA) and method.pool(LLAVA) == "frame"
    assert not method.sees_every_slot(LLAVA) and Fuse().sees_every_slot(LLAVA)
    assert method.positions(LLAVA) == "original" and not Fuse(DivPrune(compat="official")).exact
    assert Fuse(HiPrune(per="image")).pool(LLAVA) == "image"


@pytest.mark.parametrize(
    ("text", "method", "keep"),
    [
        ("fuse(divprune:0.1)@2", Fuse(), 0.1),
        ("fuse(divprune:64)@3", Fuse(layer=3), 64),
        ("fuse(hiprune(alpha=0.2):0.1, lambda_=0.5, share=0.2)@2", Fuse(HiPrune(alpha=0.2), 2, 0.2, lambda_=0.5), 0.1),
        (
            " fuse( divprune ( score_dtype = float16 ) : 0.1 , tau=0.1 ) @ 4 ",
            Fuse(DivPrune("float16"), 4, tau=0.1),
            0.1,
        ),
        ("fuse(selector=hiprune):0.2", Fuse(HiPrune()), 0.2),
        ("fuse(divprune)@2:0.2", Fuse(), 0.2),
        ("fuse:0.2", Fuse(), 0.2),
        ("hilo@2:0.1", HiLo(layers=(2,)), 0.1),
        ("hilo:0.1", HiLo(), 0.1),
        ("hilo(share=0.6, alpha=None)@4,8,16:0.2", HiLo(layers=(4, 8, 16), share=0.6), 0.2),
    ],
)
def test_recipes(text: str, method: Method, keep: float) -> None:
    parsed = vlmprune.recipe(text)
    assert parsed == Recipe((Stage(method, keep),))
    assert vlmprune.recipe(str(parsed)) == parsed


def test_a_recipe_is_written_as_the_user_would() -> None:
    chain = "divprune:0.5 > fuse(hiprune(alpha=0.2):0.1, tau=0.1)@2"
    assert str(vlmprune.recipe(chain)) == chain
    assert str(vlmprune.recipe("fuse(divprune)@2", 0.1)) == "fuse(divprune:0.1)@2"
    assert str(vlmprune.recipe("fuse", 0.1, selector="hiprune(alpha=0.2)")) == "fuse(hiprune(alpha=0.2):0.1)@2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fuse(divprune:0.1)@2:0.2", "given twice"),
        ("fuse(divprune)@2", "needs a budget"),
        ("fuse(divprun:0.1)@2", "no method 'divprun'"),
        ("fuse(divprune:0.1, hiprune:0.1)@2", "is not an option"),
        ("fuse(divprune:0.1, beta=2)@2", "no option 'beta'"),
        ("fuse(divprune:0.1))@2", "brackets"),
        ("fuse(divprune:0.1", "is not a stage"),
        ("fuse(downsample:0.1)@2", "resizes"),
        ("fuse(selector=divprune:0.1)@2", "write the budget"),
        ("divprune(hiprune:0.1)", "is not an option"),
        ("hilo(share=0.5, alpha=2)@2:0.1", "give one"),
        ("hilo(share=2)@2:0.1", "number from 0 to 1"),
        ("hilo(ratio=0.5)@2,4:0.1", "at least 1"),
        ("hilo@4,2:0.1", "increasing order"),
        ("hilo@0:0.1", "at least 1"),
        ("hilo(coarse_pixels=grey):0.1", "must be 'raw' or 'normalized'"),
        ("fuse(divprune:0.1, threshold_over=all)@2", "must be 'row' or 'candidates'"),
    ],
)
def test_mistakes_are_said_in_a_sentence(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        vlmprune.recipe(text)


@pytest.mark.parametrize(
    ("text", "says"), [("fuse(fastv:0.3)@2", "acts inside"), ("fuse(visionzip:0.3)@2", "makes new")]
)
def test_what_cannot_be_wrapped(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says), vlmprune.prune(built("llava"), text):
        built("llava")(**inputs_of("llava", RAGGED))


# ------------------------------------------------------------------ inside models


PLAIN = {
    "no strength": "hilo(lambda_=0)@2:0.3",
    "no threshold reached": "hilo(tau=1)@2:0.3",
    "several cuts": "hilo(lambda_=0)@2,3:0.3",
    "wrapper": "fuse(divprune:0.3, lambda_=0)@2",
    "after another": "divprune:0.6 > hilo(lambda_=0)@2:0.5",
}
FUSED = {
    "hilo": "hilo(tau=0.01, share=0.8)@2:0.3",
    "several cuts": "hilo(tau=0.01, share=0.8)@2,3:0.2",
    "wrapper": "fuse(divprune:0.3, tau=0.01)@2",
    "after another": "divprune:0.6 > hilo(tau=0.01, share=0.9)@2:0.4",
    "around a cut": "fastv@2:0.7 > hilo(tau=0.01, share=0.9)@3:0.4",
}


def policies(spec: str, family: str) -> dict[int, str]:
    compact = spec.startswith("divprune") and "llava" in family
    return {0: "compact"} if compact else {}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_fusion_it_is_a_plain_cut(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, PLAIN[name]) as session:
        tokens, logits = generate(model, inputs)
    assert session.last.fused == {}
    expected = oracle(family, RAGGED, inputs, tokens, session.last, policies(PLAIN[name], family))
    assert largest(logits, expected) < TOLERANCE


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_the_wrapper_cuts_what_its_selector_keeps(family: str) -> None:
    model, inputs, kept = built(family), inputs_of(family, RAGGED), []
    for spec in ("divprune:0.3", "fuse(divprune:0.3)@2", "fuse(divprune:0.3, lambda_=0)@2"):
        with torch.no_grad(), vlmprune.prune(model, spec) as session:
            model(**inputs)
        kept.append(session.last.kept)
    for other in kept[1:]:
        assert all(torch.equal(a, b) for row, rest in zip(kept[0], other) for a, b in zip(row, rest, strict=True))


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("family", FAMILIES)
def test_with_fusion(family: str, name: str) -> None:
    """Exactly the budget is left; a batch is each sample alone, cached is uncached, and candidates do not survive."""
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, FUSED[name]) as session:
        tokens, logits = generate(model, inputs)
        report = session.last
        last = report.stages[-1][0]
        for row, columns in enumerate(report.columns):
            ids = inputs["input_ids"][row, columns[columns >= 0]]
            visual = sum(int((ids == token).sum()) for token in session.adapter.placeholder_ids.values())
            assert visual == sum(len(image) for image in report.kept[row])  # all that goes on is what was kept
        one = alone(family, RAGGED, 0)
        assert largest(generate(model, one)[1][0], logits[0]) < TOLERANCE
        longer = counted(family, extend(family, inputs, tokens[:, :1]))
        again = model(**longer, use_cache=False, logits_to_keep=2).logits[:, -1]
        assert largest(again, logits[:, 1]) < TOLERANCE
    assert report.fused and max(report.fused) < last
    off = FUSED[name].replace("tau=0.01", "lambda_=0")
    with vlmprune.prune(model, off) as session:
        plain = generate(model, inputs)[1]
    assert largest(plain[:, 0], logits[:, 0]) > TOLERANCE
    if name != "around a cut":  # there FastV reads a layer that is fused
        assert all(torch.equal(a, b) for x, y in zip(report.kept, session.last.kept) for a, b in zip(x, y))


def test_encoded_once_for_several() -> None:
    model, inputs = built("qwen2_5_vl"), inputs_of("qwen2_5_vl", RAGGED)
    specs = ["hilo(tau=0.01)@2:0.3", "hilo(coarse_pixels=normalized)@2:0.3", "divprune:0.3"]
    encoded = vlmprune.encode_images(model, inputs, [vlmprune.recipe(spec) for spec in specs])
    for spec in specs:
        answers: list[Any] = []
        for given_inputs in (inputs, encoded.inputs()):
            with torch.no_grad(), vlmprune.prune(model, spec):
                answers.append(model(**given_inputs).logits[:, -1])
        assert torch.equal(*answers)
