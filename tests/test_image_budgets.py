"""A budget for each image: `keep=[0.5, 0.1]` and `keep=[[...], [...]]`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import RAGGED, STEPS, TOLERANCE, alone, built, extend, generate, inputs_of, largest, oracle
from harness import policies as policies_of
from harness_methods import METHODS, cutting, places
from versions import behind, cache_of

import vlmprune
from vlmprune.core.budget import Keeps, check_budget, parse_keep
from vlmprune.core.recipe import format_method, recipe
from vlmprune.core.report import RunReport
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES

EACH = [[0.5, 3], [0.2]]  # for RAGGED: two images beside one
WITHDRAWING = {name for name in METHODS if places(name, 0.2) != places(name, 0.7)}  # the budget says at which layer
LISTED = [name for name in METHODS if name not in WITHDRAWING]
INSIDE = "fuse(hiprune, lambda_=0)@2"
CHAIN = "divprune:[[0.5, 20], [0.4]] > fastv@2:[[0.5, 3], [5]]"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def ran(family: str, spec: str, keep: Any, inputs: dict[str, Any] | None = None, **options: Any) -> Any:
    """New tokens, their logits and the report."""
    with vlmprune.prune(built(family), spec, keep) as session:
        tokens, logits = generate(built(family), inputs_of(family, RAGGED) if inputs is None else inputs, **options)
    return tokens, logits, session.last


def of_row(report: RunReport, row: int) -> Any:
    """What each stage left of a row: how many tokens, and the slots of each image."""
    counts = [(layer, counts[row]) for layer, counts in report.counts]
    return counts, [[kept.tolist() for kept in rows[row]] for _, rows in report.stages]


def kept_of(report: RunReport, row: int, number: int) -> list[int]:
    """Slots of one image that are kept after each stage."""
    return [len(rows[row][number]) for _, rows in report.stages]


def due_counts(spec: str) -> list[tuple[int, list[int]]]:
    """What every stage of an exact method leaves of RAGGED under EACH."""
    left = [[FAMILIES["llava"].slots(seed) for seed in seeds] for seeds in RAGGED]
    total, due = left, []
    for act in recipe(spec, EACH).on(adapter_for(built("llava")).info).acts:
        left = [
            [min(n, act.at(row, k, len(of)).budget(n, total[row][k])) for k, n in enumerate(of)]
            for row, of in enumerate(left)
        ]
        due.append((act.layer or 0, [sum(of) for of in left]))
    return due


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_equal_budgets_are_the_one_budget(name: str) -> None:
    for keep, equal in ((0.4, [[0.4, 0.4], [0.4]]), (5, [[5, 5], [5]])):
        if name in WITHDRAWING and isinstance(keep, int):
            continue
        one, listed = ran("llava", name, keep), ran("llava", name, equal)
        assert torch.equal(one[0], listed[0]) and torch.equal(one[1], listed[1])
        assert one[2].tokens == listed[2].tokens


@torch.no_grad()
@pytest.mark.parametrize("name", LISTED)
def test_each_image_has_the_tokens_of_its_own_budget(name: str) -> None:
    """At every stage, and a sample of a batch is what it is alone; the methods that only drop equal the oracle."""
    method = cutting(name)
    spec = format_method(method)
    tokens, logits, report = ran("llava", spec, EACH)
    for row, seeds in enumerate(RAGGED):
        single = alone("llava", RAGGED, row)
        _, own_logits, own = ran("llava", spec, EACH[row], single)
        assert largest(own_logits[0], logits[row]) < TOLERANCE
        assert own.tokens == [report.tokens[row]]
        assert of_row(report, row) == of_row(own, 0)
        for number in range(len(seeds)):
            alike = ran("llava", spec, EACH[row][number], single)[2]
            # What is merged, or kept by a count of the method's own, depends on what the other image keeps.
            own_count = (method.exact and not method.merges) or len(seeds) == 1
            stages = len(report.stages) if own_count else 1
            assert kept_of(report, row, number)[:stages] == kept_of(alike, 0, number)[:stages]
    if method.exact:
        assert report.counts == due_counts(spec)
    if not method.merges:
        due = oracle("llava", RAGGED, inputs_of("llava", RAGGED), tokens, report, policies_of(f"{spec}:0.3", "llava"))
        assert largest(logits, due) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", [CHAIN, f"random@2:{EACH}"])
def test_on_every_family(family: str, spec: str) -> None:
    """Tiles of an image and frames of a video share its budget; images and videos count in prompt order."""
    tokens, logits, report = ran(family, spec, None)
    plain = spec.replace(str(EACH), "0.3").replace("[[0.5, 20], [0.4]]", "0.3").replace("[[0.5, 3], [5]]", "0.3")
    due = oracle(family, RAGGED, inputs_of(family, RAGGED), tokens, report, policies_of(plain, family))
    assert largest(logits, due) < TOLERANCE
    for row, seeds in enumerate(RAGGED):
        left = [FAMILIES[family].slots(seed) for seed in seeds]
        for stage in recipe(spec).stages:
            assert isinstance(stage.keep, Keeps)
            budgets = stage.keep.rows[row]
            left = [min(k, n) if isinstance(k, int) else max(1, round(k * n)) for k, n in zip(budgets, left)]
        assert [len(kept) for kept in report.kept[row]] == left


@torch.no_grad()
@pytest.mark.parametrize("spec", ["divprune", "pyramiddrop", INSIDE, "visionzip"])
def test_beams_answers_and_a_static_cache(spec: str) -> None:
    inputs = inputs_of("llava", RAGGED)
    tokens, logits, report = ran("llava", spec, EACH)
    static = ran("llava", spec, EACH, cache_implementation="static", disable_compile=True)
    assert torch.equal(tokens, static[0]) and largest(logits, static[1]) < TOLERANCE
    with vlmprune.prune(built("llava"), spec, EACH) as session:
        beams = built("llava").generate(**inputs, num_beams=3, max_new_tokens=STEPS, do_sample=False)
        assert session.last.tokens == report.tokens
        for row in range(len(RAGGED)):
            single = alone("llava", RAGGED, row)
            with pytest.raises(vlmprune.UserError):
                built("llava")(**single)  # two lists, one sample
    for row in range(len(RAGGED)):
        single = alone("llava", RAGGED, row)
        with vlmprune.prune(built("llava"), spec, EACH[row]):
            own = built("llava").generate(**single, num_beams=3, max_new_tokens=STEPS, do_sample=False)
        count = own.shape[1] - single["input_ids"].shape[1]
        assert torch.equal(own[0, -count:], beams[row, -STEPS:][:count])
    torch.manual_seed(0)
    assert ran("llava", spec, EACH, num_return_sequences=2, do_sample=True)[2].tokens == report.tokens


@torch.no_grad()
def test_a_list_counts_the_images_of_the_new_prompt() -> None:
    model, inputs = built("llava"), inputs_of("llava", [[0]])
    more = inputs_of("llava", [[1]], seed=50)
    with vlmprune.prune(model, "divprune", keep=[7]) as session:
        first = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True)
        turn = extend("llava", inputs, first.sequences[:, inputs["input_ids"].shape[1] :])
        full = {key: torch.cat([turn[key], more[key]], dim=1) for key in ("input_ids", "attention_mask")}
        full["pixel_values"] = more["pixel_values"]
        generate(model, full, **behind(cache_of(first)))
    assert [[len(kept) for kept in row] for row in session.last.kept] == [[7]]


@torch.no_grad()
def test_pictures_resized_each_to_its_own_budget() -> None:
    family, each = "qwen2_5_vl", [[0.6, 1], [1.0]]
    _, logits, report = ran(family, "downsample", each)
    assert len(report.kept[0][1]) == 1
    for row in range(len(RAGGED)):
        _, own, single = ran(family, "downsample", each[row], alone(family, RAGGED, row))
        assert largest(own[0], logits[row]) < TOLERANCE and single.tokens == [report.tokens[row]]
    same = ran(family, "downsample", 0.6), ran(family, "downsample", [[0.6, 0.6], [0.6]])
    assert torch.equal(same[0][1], same[1][1])
    encoded = vlmprune.encode_images(built(family), inputs_of(family, RAGGED), "divprune:[[0.5, 1], [2]]")
    assert ran(family, "divprune", [[0.5, 1], [2]], encoded.inputs())[2].tokens[1][1] == 2


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "spec", "keep", "sentence"),
    [
        ("llava", "divprune", [0.5, 0.1], r"keep=\[0.5, 0.1\] has 2 budgets for sample 1, whose prompt has 1 image:"),
        ("llava", "fastv", [[0.5], [0.5]], "has 1 budget for sample 0, whose prompt has 2 images"),
        ("llava", "fastv", [[0.5, 0.5]], "a list for each of 1 samples, but the batch has 2"),
        ("llava", "vtw", [[0.5, 0.8], [0.5]], "vtw acts at other layers under another budget"),
        ("llava", "pyramiddrop(average=True)", [[0.9, 0.001], [0.5]], "give a budget of 0.251"),
        ("llava", "tome(inside=True)", [[0.5, 0.4], [0.5]], "merges inside the encoder"),
        ("llava", "prumerge(adaptive=True)", [0.5, 0.4], "takes no budget"),
        ("llava", "divprune:0.5 > fastv@2:0.5", [0.5, 0.1], "A chain has its own budgets"),
        ("llava", "divprune", [0.5, "a"], "keep='a' is not a budget"),
        ("llava", "divprune", [0.5, [0.1]], "is not a budget for each image"),
        ("llava with SigLIP", "downsample", [[0.5, 0.1], [0.5]], "pictures of one size together"),
        ("qwen2_5_vl", "downsample", [0.5, 0.1], "has 2 budgets, but 3 pictures are encoded together"),
        ("qwen2_5_vl mixed", "downsample", [[0.5, 0.1], [0.3]], "budgets"),
    ],
)
def test_what_does_not_fit_is_told(family: str, spec: str, keep: Any, sentence: str) -> None:
    with pytest.raises(vlmprune.UserError, match=sentence):
        ran(family, spec, keep)


@torch.no_grad()
def test_images_and_videos_cannot_be_told_apart_before_they_are_encoded() -> None:
    family, beside, apart = "qwen2_5_vl mixed", [[0, 1], [2, 3]], [[0, 2], [1, 3]]  # odd ones are videos
    with pytest.raises(vlmprune.UserError, match="images and videos are mixed"):
        ran(family, "downsample", [0.5, 0.2], inputs_of(family, beside))
    inputs = inputs_of(family, apart)
    assert ran(family, "downsample", [0.6, 0.6], inputs)[2].tokens == ran(family, "downsample", 0.6, inputs)[2].tokens
    assert ran(family, "downsample", [0.6, 1], inputs)[2].tokens[0][1] < sum(map(FAMILIES[family].slots, apart[0]))


def test_a_list_goes_round_in_a_recipe() -> None:
    for text in ("divprune:[0.5, 64]", "fuse(divprune:[[0.5, 1.0], [1]])@2", CHAIN):
        assert str(recipe(text)) == text and recipe(str(recipe(text))) == recipe(text)
    assert recipe("divprune", keep=(0.5, 64)) == recipe("divprune:[0.5, 64]")
    assert check_budget([1, 1.0]).different == [1, 1.0]
    with pytest.raises(vlmprune.UserError, match="is not a list of budgets"):
        recipe("divprune:[0.5")
    with pytest.raises(vlmprune.UserError, match=r"'\[0.5, 0.1\]' is not a budget"):
        parse_keep("[0.5, 0.1]")


def test_a_benchmark_has_one_budget_for_all_images() -> None:
    from vlmprune.bench.plan import variants_of

    with pytest.raises(vlmprune.UserError, match="a benchmark gives all images the same"):
        variants_of("divprune:[0.5, 0.1]", [0.5])


# ---------------------------------------------------------------- by age

AGED = "divprune:0.5/latest+3/older"


@torch.no_grad()
@pytest.mark.parametrize("spec", ["divprune", "fastv@2", "pyramiddrop", "visionzip"])
def test_budgets_by_age_are_those_of_a_list(spec: str) -> None:
    aged, listed = ran("llava", spec, "0.5/latest+0.1/older"), ran("llava", spec, [[0.1, 0.5], [0.5]])
    assert torch.equal(aged[0], listed[0]) and torch.equal(aged[1], listed[1])
    assert aged[2].tokens == listed[2].tokens


@torch.no_grad()
def test_several_images_may_be_the_latest() -> None:
    for keep, equal in (("9/latest2+3/older", [[9, 9], [9]]), ("9/latest+3/older", [[3, 9], [9]])):
        report = ran("llava", "divprune", keep)[2]
        assert [[len(kept) for kept in row] for row in report.kept] == equal


@torch.no_grad()
def test_a_resized_picture_has_the_budget_of_its_age() -> None:
    """Pictures are encoded before anybody knows whose they are, so a batch of prompts is refused."""
    single, family = alone("qwen2_5_vl", RAGGED, 0), "qwen2_5_vl"
    aged, listed = ran(family, "downsample", "9/latest+4/older", single), ran(family, "downsample", [4, 9], single)
    assert aged[2].tokens == listed[2].tokens and torch.equal(aged[1], listed[1])
    with pytest.raises(vlmprune.UserError, match="cannot tell which budget is whose"):
        ran(family, "downsample", "9/latest+4/older")


@torch.no_grad()
def test_a_video_has_the_budget_of_its_age_as_a_whole() -> None:
    """A list as long as the video has frames would be one for each frame."""
    aged = check_budget("9/latest+4/older")
    assert isinstance(aged, Keeps) and not aged.for_frames(0, 1, 2) and aged.at(0, 0, 1) == 9


def test_budgets_by_age_as_text() -> None:
    for text in (AGED, "divprune:0.5/latest3+0.1/older", "pyramiddrop:mean=0.5/latest+0.25/older"):
        assert str(recipe(text)) == text and recipe(str(recipe(text))) == recipe(text)
    assert recipe("divprune", "0.5/latest+3/older") == recipe(AGED)
    for wrong in ("0.5/latest", "0.5/latest0+0.1/older", "2.5/latest+0.1/older", "x/latest+1/older", "0.1/older"):
        with pytest.raises(vlmprune.UserError, match=r"budget|one image must be the latest"):
            recipe("divprune", wrong)
