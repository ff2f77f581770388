"""Presets stand for the recipes of published settings, wherever a recipe is taken."""

from __future__ import annotations

import pytest
import torch
from golden_runners.case import acting

import vlmprune
from vlmprune.bench.plan import Plan, variants_of
from vlmprune.cli import main
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.presets import BEFORE_THE_LLM, INSIDE_THE_LLM, PRESETS, SHARES, UNIPRUNEBENCH
from vlmprune.core.recipe import lacks_budget, recipe
from vlmprune.core.view import Grid, ImageView, Merged, ModelInfo, TowerRows
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.methods.vision.visionzip import VisionZip
from vlmprune.methods.vision.vispruner import VisPruner
from vlmprune.runtime.select import choose

LLAVA, QWEN = ModelInfo("llava", 24, 32, True), ModelInfo("qwen2_5_vl", 32, 28, False)
NEXT = ModelInfo("llava_next", 24, 32, True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_recipe(name: str) -> None:
    plain = PRESETS[name].recipe
    assert recipe(name) == recipe(plain)
    assert str(recipe(name)) == plain, "written as recipes are"
    for info in (LLAVA, QWEN):
        recipe(name).check(info)
        for stage in recipe(name).stages:
            stage.method.needs(info)


def test_names_are_the_presets_own() -> None:
    groups = (*BEFORE_THE_LLM, *INSIDE_THE_LLM, *UNIPRUNEBENCH)
    assert len(PRESETS) == sum(len(group) for group in groups), "a name twice"
    assert not PRESETS.keys() & set(vlmprune.METHODS)
    assert all(preset.source.strip() for preset in PRESETS.values())


OTHER_NUMBERS = ("nuwa-", "mustdrop-textvqa-", "mustdrop-vizwiz-", "vtw-", "fuse-", "unibench-pool-")


def test_a_number_in_a_name_is_the_budget() -> None:
    for name, preset in PRESETS.items():
        number = name.rpartition("-")[2]
        if number[0].isdigit() and not name.startswith(OTHER_NUMBERS):
            assert preset.recipe.endswith(f":{number}")


def test_a_preset_stands_where_a_stage_does() -> None:
    assert str(recipe("visionzip-64 > fastv@2:0.5")) == "visionzip:64 > fastv@2:0.5"
    assert str(recipe(" divprune+fastv-0.333 ")) == "divprune:0.333 > fastv@2:0.333"
    assert recipe("prumerge-adaptive").stages[0].keep == 1.0


def test_a_preset_has_its_budget() -> None:
    with pytest.raises(UserError, match=r"given twice, in the recipe \(64\) and as keep=0.5"):
        recipe("visionzip-64", keep=0.5)
    with pytest.raises(UserError, match="has its own budgets"):
        recipe("divprune+fastv-0.333", keep=0.5)
    with pytest.raises(UserError, match="takes no budget"):
        recipe("prumerge-adaptive", keep=0.5)
    assert [lacks_budget(text) for text in ("fastv", "fastv@3", "fastv:9", "fastv-192", "prumerge-adaptive")] == [
        True, True, False, False, False
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "meant"), [("visionzip-65", "visionzip-64"), ("hiprun-192", "hiprune-192"), ("divprun", "divprune")]
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"There is no method '{wrong}': did you mean '{meant}'"):
        recipe(wrong, keep=0.5)
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        Plan(methods=(wrong,)).check()


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "presets"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(PRESETS)
    assert all(preset.recipe in line and preset.source in line for preset, line in zip(PRESETS.values(), listed))


def test_a_benchmark_takes_them_at_their_own_budgets() -> None:
    for name in ("visionzip-64", "prumerge-adaptive", "divprune+fastv-0.333"):
        assert [variant.text for variant in variants_of(name, (0.3, 0.2))] == [PRESETS[name].recipe]
    assert [variant.keep for variant in variants_of("visionzip", (0.3, 0.2))] == [0.3, 0.2]


@pytest.mark.parametrize(
    ("name", "kept"), [("visionzip-64", 64), ("hiprune-128", 128), ("gprune-0.5", 98), ("divprune-0.098", 19)]
)
def test_a_model_is_pruned_by_them(name: str, kept: int, scene: tuple) -> None:
    model, inputs = scene
    with vlmprune.prune(model, name) as session, torch.no_grad():
        model(**inputs)
    assert session.last.tokens == [(196, kept)]


@pytest.mark.parametrize("name", ["prumerge-adaptive", "prumerge+-adaptive", "trim-adaptive", "recoverable-adaptive"])
def test_images_tell_what_adaptive_ones_keep(name: str, scene: tuple) -> None:
    model, inputs = scene
    with vlmprune.prune(model, name) as session, torch.no_grad():
        model(**inputs)
    [(before, after)] = session.last.tokens
    assert before == 196 and 1 <= after < 150


DEEP = {
    "vtw-7b", "vtw-13b", "hilo-staged-0.2", "hilo-staged-0.1", *(f"unibench-pdrop-{keep}" for keep in SHARES),
    *(name for name in PRESETS if name.startswith("nuwa-")),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_each_runs_or_says_that_the_model_is_not_that_deep(name: str, scene: tuple) -> None:
    model, inputs = scene
    try:
        with vlmprune.prune(model, name) as session, torch.no_grad():
            model(**inputs)
    except UserError as error:
        assert name in DEEP and "this model has layers 0 to 7" in str(error)
    else:
        assert name not in DEEP
        [(before, after)] = session.last.tokens
        assert before == 196 and after <= 196


@pytest.fixture(scope="module")
def scene() -> tuple:
    """The embedded LLaVA with a question about a picture."""
    from PIL import Image

    model, processor = vlmprune.load_embedded("llava")
    words = [{"type": "image"}, {"type": "text", "text": "Count the objects."}]
    prompt = processor.apply_chat_template([{"role": "user", "content": words}], add_generation_prompt=True)
    picture = Image.linear_gradient("L").convert("RGB")
    return model, processor(images=[picture], text=[prompt], return_tensors="pt")


# ---------------------------------------------------------------- the published splits


def view(method: Method, keep: int, info: ModelInfo, frames: int = 1) -> ImageView:
    """A square of 24 x 24 tokens a tile, with what the method reads."""
    rng, n = torch.Generator().manual_seed(0), 576 * frames
    rows, keys, cls = torch.randn(n, 8, generator=rng), torch.randn(n, 8, generator=rng), torch.zeros(frames, 8)
    signals = {name: torch.rand(n, generator=rng) for name in ("attention", "object", "deep")}
    signals |= {"rows": TowerRows(rows, cls), "keys": TowerRows(keys, cls)}
    signals = {name: signals[name] for name in method.needs(info)}
    return ImageView(keep, torch.arange(n), Grid(24, 24, frames), info, signals)


@pytest.mark.parametrize(("keep", "dominant", "contextual"), [(192, 162, 30), (128, 108, 20), (64, 54, 10)])
def test_visionzip_splits_as_its_authors(keep: int, dominant: int, contextual: int) -> None:
    method = recipe(f"visionzip-{keep}").stages[0].method
    assert isinstance(method, VisionZip)
    parts = method.clusters(view(method, keep, LLAVA))
    assert (len(parts.dominant), len(parts.targets)) == (dominant, contextual)


@pytest.mark.parametrize(("keep", "each"), [(640, 128), (320, 64), (160, 32)])
@pytest.mark.parametrize("name", ["visionzip", "hiprune"])
def test_five_tiles_share_what_an_image_gets(name: str, keep: int, each: int) -> None:
    [stage] = recipe(f"{name}-{keep}").stages
    chosen = choose(acting(stage.method, stage.keep, view(stage.method, keep, NEXT, frames=5)))
    anchors = chosen.anchors if isinstance(chosen, Merged) else chosen
    own = each - 1 if isinstance(chosen, Merged) else each  # VisionZip's CLS tokens have no place
    assert torch.bincount(anchors[anchors >= 0] // 576).tolist() == [own] * 5


@pytest.mark.parametrize(("keep", "important"), [(128, 64), (64, 48)])
def test_vispruner_splits_as_its_authors(keep: int, important: int) -> None:
    method = recipe(f"vispruner-{keep}").stages[0].method
    assert isinstance(method, VisPruner)
    parts = method.parts(view(method, keep, LLAVA))
    assert [len(part) for part in parts] == [important, keep - important]


@pytest.mark.parametrize(("keep", "anchors"), [(192, 4), (128, 3), (64, 1)])
def test_hiprune_has_its_authors_anchors(keep: int, anchors: int) -> None:
    method = recipe(f"hiprune-{keep}").stages[0].method
    assert isinstance(method, HiPrune)
    near, registers = method.parts(view(method, keep, LLAVA))
    assert anchors < len(near) <= 5 * anchors and len(near) + len(registers) == keep


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("sparsevlm-192", {3: 300, 7: 200, 16: 110}),
        ("sparsevlm-64", {3: 66, 7: 30, 16: 17}),
        ("sparsevlm+-128", {3: 238, 7: 108, 16: 60}),
        ("adaptinfer-128", {2: 290, 11: 72, 21: 18}),
        ("adaptinfer-32", {2: 40, 11: 12, 21: 0}),
        ("pyramiddrop-0.5", {8: 288, 16: 144, 24: 72}),
        ("pyramiddrop-192", {2: 322, 8: 180, 16: 100}),
        ("pyramiddrop-64", {2: 110, 8: 21, 16: 4}),
        ("unibench-pdrop-0.333", {6: 191, 12: 63, 18: 20}),
    ],
)
def test_schedules_are_the_published_ones(name: str, schedule: dict[int, int]) -> None:
    assert counts(name, LLAVA) == schedule


def entering(name: str, info: ModelInfo) -> list[int]:
    """Tokens that enter each layer, of 576, without what SparseVLM recycles."""
    tokens = [576] * info.decoder_layers
    for layer, count in counts(name, info).items():
        tokens[layer:] = [count] * (info.decoder_layers - layer)
    return tokens


@pytest.mark.parametrize("name", ["pyramiddrop", "fitprune", "fastv-average"])
@pytest.mark.parametrize("keep", [192, 128, 64])
@pytest.mark.parametrize("info", [LLAVA, QWEN], ids=["32 layers", "28 layers"])
def test_averages_are_of_the_models_own_depth(name: str, keep: int, info: ModelInfo) -> None:
    assert sum(entering(f"{name}-{keep}", info)) / info.decoder_layers == pytest.approx(keep, abs=2)


@pytest.mark.parametrize("name", ["sparsevlm+", "adaptinfer", "mustdrop"])
@pytest.mark.parametrize("keep", [192, 128, 64])
def test_28_layers_are_left_by_as_many_as_32(name: str, keep: int) -> None:
    """These count a layer by what it passes on; a cut that lies between two of the 28 layers moves the average."""
    for info, tolerance in ((LLAVA, 1.2), (QWEN, 5)):
        tokens = entering(f"{name}-{keep}", info)
        assert sum([*tokens[1:], tokens[-1]]) / info.decoder_layers == pytest.approx(keep, abs=tolerance)


def counts(name: str, info: ModelInfo) -> dict[int, int]:
    """Of 576 tokens, how many go on from each layer before which the preset acts."""
    left, reached, found = 576, dict[int, int](), dict[int, int]()
    for act in recipe(name).on(info).acts:
        left = min(left, act.budget(left, reached.setdefault(act.stage, left)))
        assert act.layer is not None
        found[act.layer] = left
    return found


@pytest.mark.parametrize(("layer", "kept"), [(2, (166, 98, 30)), (3, (152, 82, 11))])
def test_fastvs_averages_are_the_published_counts(layer: int, kept: tuple[int, ...]) -> None:
    for keep, count in zip((192, 128, 64), kept, strict=True):
        assert counts(f"fastv(average=True)@{layer}:{keep}", LLAVA) == {layer: count}
        assert counts(f"fastv(average=True)@{layer}:{keep / 576}", LLAVA) == {layer: count}
    with pytest.raises(UserError, match="the first 2 of 28 layers see every token"):
        counts("fastv(average=True)@2:0.05", QWEN)
    with pytest.raises(UserError, match="with compat='paper' only"):
        recipe("fastv(average=True, compat=uniprune):0.5")
