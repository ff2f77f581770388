"""From the tower's patches to the LLM's slots, and from a budget to each image's own count, on every family.

A planted object is painted into the pixels and a tower is set up that only sees brightness: what is kept must be the
slots that show the object. Statistics must equal those worked out from the tower's own eager attention, laid out by
hand (vlmprune.testing knows which patches stand behind a slot).
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from harness import SEEDS, batch, built, families, seeing, with_specs
from torch import Tensor

import vlmprune
from vlmprune.core.method import Method, Scorer
from vlmprune.core.needs import EncoderLayer, Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import (
    ClsAttention,
    EncoderKeys,
    Features,
    LastQueryAttention,
    ReceivedAttention,
    TowerFeatures,
)
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.testing import FAMILIES, Family
from vlmprune.testing.anyres import ONEVISION
from vlmprune.testing.images import text
from vlmprune.testing.tower import Expected, features, in_text_model, tower_layers
from vlmprune.testing.weights import IMAGE

EXACT = 2e-6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def kept_by(model: Any, method: Method | str, keep: float | int, inputs: dict[str, Tensor]) -> list[list[list[int]]]:
    """Slots kept before the LLM, by sample and image."""
    recipe = method if isinstance(method, str) else Recipe((Stage(method, keep),))
    with torch.no_grad(), vlmprune.prune(model, recipe, **({"keep": keep} if recipe is method else {})) as session:
        model(**inputs)
    return [[image.tolist() for image in sample] for sample in session.last.kept]


# ------------------------------------------------------------------ cells


@torch.no_grad()
@families
def test_the_report_says_which_cell_each_slot_shows(family: str) -> None:
    with vlmprune.prune(built(family), "random:1.0") as session:
        built(family)(**batch(FAMILIES[family], SEEDS))
    for sample, grids, cells in zip(SEEDS, session.last.grids, session.last.cells, strict=True):
        for seed, grid, shown in zip(sample, grids, cells, strict=True):
            expected, allowed = FAMILIES[family].slot_grid(seed)
            assert grid == expected and len(shown) == len(allowed)
            assert all(cell in those for cell, those in zip(shown.tolist(), allowed, strict=True))


# ------------------------------------------------------------------ a planted object


@cache
def brightness_tower(family: str) -> Any:
    """A tower whose states, keys and queries are the mean brightness of a token's own patch and nothing else.

    Norms with a large epsilon hardly normalise, so all of it is linear. The CLS token looks like a bright patch.
    """
    model = copy.deepcopy(built(family))
    for name, module in model.named_modules():
        if not in_text_model(name):
            for epsilon in ("eps", "variance_epsilon"):
                if hasattr(module, epsilon):
                    setattr(module, epsilon, 1.0)
    bright = 1e-3  # of the state, for a pixel of 1
    for name, weight in model.named_parameters():
        if in_text_model(name):
            continue
        norm = "norm" in name or "ln_" in name
        weight.data.fill_(1.0 if norm and name.endswith("weight") else 0.0)
        if "patch_" in name and (
            weight.dim() > 3 or name.endswith(("input_proj.weight", "embedding.weight", "embedding.linear.weight"))
        ):
            weight.data[0] = bright / weight[0].numel()
            weight.data[1] = -weight.data[0]  # a mean of zero passes LayerNorm
        elif name.endswith(("class_embedding", "cls_token")):
            weight.data[..., 0], weight.data[..., 1] = 100 * bright, -100 * bright
        elif name.removesuffix(".weight").removesuffix(".linear").endswith(("q_proj", "k_proj", "attn.q", "attn.k")):
            weight.data[3::8, 0] = 1 / (100 * bright)  # the fourth of each head's 8 channels, which rotates slowly
        elif name.endswith("qkv.weight"):
            weight.data[3:64:8, 0] = 1 / (100 * bright)
    for name, table in model.named_buffers():
        if not in_text_model(name) and name.endswith("position_embeddings"):  # Kimi's, of a frame's time
            table.zero_()
    return model


@dataclass
class BrightKeys(Scorer):
    """The length of a token's key."""

    name, stage = "bright_keys", "vision"
    layer: EncoderLayer = 1

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"keys": EncoderKeys(self.layer)}

    def score(self, view: ImageView) -> Tensor:
        return view["keys"].rows.norm(dim=-1)


@dataclass
class BrightRows(Scorer):
    name, stage = "bright_rows", "vision"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"rows": TowerFeatures()}

    def score(self, view: ImageView) -> Tensor:
        return view["rows"].rows[:, 0]


@dataclass
class Attended(Scorer):
    name, stage = "attended", "vision"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"attention": ClsAttention()}

    def score(self, view: ImageView) -> Tensor:
        return view["attention"]


def seen_patches(family: str, seed: int) -> set[tuple[int, int, int]]:
    """Patches behind a slot that are no padding."""
    places = {place for slot in FAMILIES[family].patches(seed) for place in slot}
    padding = FAMILIES[family].image(seed)[0].get("pixel_attention_mask")
    if padding is None or padding.ndim < 4:  # or of rows of patches, where no slot has padding
        return places
    return {(t, r, c) for t, r, c in places if padding[0, t, 4 * r, 4 * c]}


def covering(family: str, seed: int, patches: set[tuple[int, int, int]]) -> list[int]:
    """The slots that show any of these patches."""
    return [number for number, slot in enumerate(FAMILIES[family].patches(seed)) if patches & set(slot)]


def blob(family: str, seed: int, slots: int, chance: random.Random) -> set[tuple[int, int, int]]:
    """Patches of one tile or frame that touch each other, grown by chance until exactly so many slots show them."""
    everywhere = sorted(seen_patches(family, seed))
    while True:
        found = {chance.choice(everywhere)}
        for _ in range(60):
            tile, row, col = chance.choice(sorted(found))
            step = chance.choice([(0, 1), (0, -1), (1, 0), (-1, 0)])
            more = found | ({(tile, row + step[0], col + step[1])} & set(everywhere))
            if len(covering(family, seed, more)) <= slots:
                found = more
        if len(covering(family, seed, found)) == slots:
            return found


def squares(family: str, seed: int, slots: int, chance: random.Random) -> set[tuple[int, int, int]]:
    """All patches of that many slots, drawn from all tiles and frames."""
    seen = seen_patches(family, seed)
    whole = [slot for slot in FAMILIES[family].patches(seed) if slot and set(slot) <= seen]
    return {place for slot in chance.sample(whole, slots) for place in slot}


def check_objects(family: str, method: Method | str, make: Any, samples: list[list[int]], slots: int) -> None:
    chance = random.Random(slots)
    objects = {seed: make(family, seed, slots, chance) for sample in samples for seed in sample}
    painted = FAMILIES[family].painted({seed: sorted(patches) for seed, patches in objects.items()}, 100.0)
    kept = kept_by(brightness_tower(family), method, slots, batch(painted, samples))
    assert kept == [[covering(family, seed, objects[seed]) for seed in sample] for sample in samples]
    assert len({str(slots) for sample in kept for slots in sample}) > 1  # not the same by accident


@seeing
@pytest.mark.parametrize("slots", [1, 4, 5])
def test_keys_find_a_planted_object(family: str, slots: int) -> None:
    """Of any shape, also one that covers a slot in part: a slot of a merger, of a shrunk canvas, of a pooled frame."""
    check_objects(family, BrightKeys(), blob, SEEDS, slots)
    check_objects(family, BrightKeys("used"), blob, [[5], [4, 3]], slots)


def with_patches_of_their_own(family: str) -> list[list[int]]:
    """Batches of images whose slots share no patch: OneVision's shrunk canvas is left out."""

    def apart(seed: int) -> bool:
        patches = [place for slot in FAMILIES[family].patches(seed) for place in slot]
        return len(patches) == len(set(patches))

    return [kept for sample in [*SEEDS, [4]] if (kept := [seed for seed in sample if apart(seed)])]


@seeing
@pytest.mark.parametrize("slots", [2, 4])
def test_keys_find_objects_in_several_tiles_and_frames(family: str, slots: int) -> None:
    check_objects(family, BrightKeys(), squares, with_patches_of_their_own(family), slots)


@seeing
@pytest.mark.parametrize("method", ["hiprune(alpha=0.0, per=image)", Attended()], ids=["received", "cls"])
def test_attention_finds_a_planted_object(family: str, method: Method | str) -> None:
    """What bright patches (and the bright CLS token) attend to: the bright patches."""
    check_objects(family, method, squares, with_patches_of_their_own(family), 4)


@pytest.mark.parametrize("family", [key for key in FAMILIES if FAMILIES[key].tower_rows])
def test_tower_rows_find_a_planted_object(family: str) -> None:
    check_objects(family, BrightRows(), blob, SEEDS, 4)


# ------------------------------------------------------------------ statistics


class Spy(Method):
    """Keeps the first tokens and remembers what it was shown."""

    name, stage = "spy", "vision"

    def __init__(self, **needs: Need) -> None:
        self.wanted: dict[str, Need] = needs
        self.seen: list[ImageView] = []

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return self.wanted

    def select(self, view: ImageView) -> Tensor:
        self.seen.append(view)
        return torch.arange(view.keep)


@torch.no_grad()
@seeing
def test_statistics_equal_those_of_eager_attention(family: str) -> None:
    subject, eager = FAMILIES[family], built(family, "eager")
    used, rows = subject.used, subject.tower_rows
    layers: list[tuple[EncoderLayer, int]] = [("used", used), (1, 1), (2, 2)]  # Qwen2.5-VL's third sees windows only
    for named, number in layers:
        layer: Any = named
        spy = Spy(
            received=ReceivedAttention(layer), cls=ClsAttention(layer), keys=EncoderKeys(layer), rows=TowerFeatures()
        )
        kept_by(built(family), spy, 2, batch(FAMILIES[family], SEEDS))
        for seed, view in zip([seed for sample in SEEDS for seed in sample], spy.seen, strict=True):
            alone, made = tower_layers(eager, subject.image(seed)[0])
            expected = Expected(subject, seed, alone[number])
            assert close(view["received"], expected.received)
            assert close(view["cls"], expected.attended)
            assert close(view["keys"].rows, expected.heads("keys"))
            states = Expected(subject, seed, alone[used])
            patched = torch.tensor([bool(slot) for slot in FAMILIES[family].patches(seed)])
            assert close(view["rows"].rows, states.mapped(states.layer.states) if rows else made[patched])
            assert (view["keys"].cls is None) == (view["rows"].cls is None) == (not (rows and subject.cls))
            if rows and subject.cls:
                assert close(view["keys"].cls, expected.cls_keys)
                assert close(view["rows"].cls, torch.cat([part[:, 0] for part in states.layer.states]))
            # a mapping that mistakes one slot for another would show
            assert view["received"].std() > 100 * EXACT


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < EXACT * max(1.0, float(b.abs().max())))


# ------------------------------------------------------------------ budgets


def wanted(keep: float | int, slots: int) -> int:
    return min(keep, slots) if isinstance(keep, int) else max(1, round(keep * slots))


@with_specs(["random:1", "divprune:1", "hiprune:1", "fastv:1"])
def test_a_share_is_of_each_image_and_a_number_is_for_each_image(family: str, spec: str) -> None:
    """All tiles of an image, and all frames of a video, have one budget between them."""
    inputs = batch(FAMILIES[family], SEEDS)
    for keep in (0.01, 0.3, 0.77, 1, 5, 10, 1000):
        with torch.no_grad(), vlmprune.prune(built(family), spec.removesuffix(":1"), keep=keep) as session:
            built(family)(**inputs)
        counts = [[FAMILIES[family].slots(seed) for seed in sample] for sample in SEEDS]
        assert [[len(image) for image in sample] for sample in session.last.kept] == [
            [wanted(keep, count) for count in sample] for sample in counts
        ]
        assert session.last.tokens == [(sum(sample), sum(wanted(keep, count) for count in sample)) for sample in counts]
        for sample, images in zip(counts, session.last.kept, strict=True):
            for count, image in zip(sample, images, strict=True):
                assert torch.equal(image, torch.unique(image)) and 0 <= int(image[0]) <= int(image[-1]) < count


# ------------------------------------------------------------------ slots without a patch

with_blanks = pytest.mark.parametrize(
    ("family", "seed"),
    [(key, seed) for key in FAMILIES for seed in range(4) if any(not slot for slot in FAMILIES[key].patches(seed))],
)


def test_the_families_with_slots_without_a_patch() -> None:
    found = {key for key in FAMILIES if any(not slot for seed in range(4) for slot in FAMILIES[key].patches(seed))}
    assert found >= {
        "llava_next", "llava_onevision", "llava_onevision video", "llava_onevision mixed", "video_llava video",
        "video_llava mixed",
    }  # fmt: skip
    assert not found & {"llava", "llava with SigLIP", "video_llava", "internvl", "smolvlm", "gemma3", "qwen3_vl video"}


@with_blanks
def test_methods_that_read_the_encoder_drop_slots_without_a_patch_first(family: str, seed: int) -> None:
    """The stated default: nothing is known of them there. Those that fit beside all others are the first ones."""
    slots, inputs = FAMILIES[family].patches(seed), batch(FAMILIES[family], [[seed]])
    patched = [number for number, slot in enumerate(slots) if slot]
    blank = [number for number, slot in enumerate(slots) if not slot]
    for method in (BrightKeys(), Attended(), "hiprune(per=image)"):
        for more in range(-2, len(blank)):
            [[kept]] = kept_by(built(family), method, len(patched) + more, inputs)
            assert len(kept) == len(patched) + more
            if more < 0:
                assert set(kept) < set(patched)
            else:
                assert kept == sorted(patched + blank[:more])


@with_blanks
def test_they_are_not_shown_to_methods_that_read_the_encoder(family: str, seed: int) -> None:
    slots, spy = FAMILIES[family].patches(seed), Spy(keys=EncoderKeys(), features=Features())
    kept_by(built(family), spy, 3, batch(FAMILIES[family], [[seed]]))
    patched = [number for number, slot in enumerate(slots) if slot]
    assert spy.seen[0].slots.tolist() == patched and len(spy.seen[0]["features"]) == len(patched)
    assert int(spy.seen[0].cells.min()) >= 0 and bool(torch.isfinite(spy.seen[0]["keys"].rows).all())


@dataclass
class Along(Scorer):
    """Projected features along a direction."""

    name, stage = "along", "vision"
    direction: Any = None

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def score(self, view: ImageView) -> Tensor:
        return view["features"] @ self.direction


def best(scores: Tensor, count: int) -> list[int]:
    """The highest, of equal ones the first, ascending."""
    return sorted(sorted(range(len(scores)), key=lambda number: (-float(scores[number]), number))[:count])


@torch.no_grad()
@with_blanks
def test_for_methods_that_read_features_they_are_tokens_like_any_other(family: str, seed: int) -> None:
    made = features(built(family), FAMILIES[family].image(seed)[0])
    blank = torch.tensor([not slot for slot in FAMILIES[family].patches(seed)])
    direction = made[blank].mean(0)
    [[kept]] = kept_by(built(family), Along(direction=direction), 6, batch(FAMILIES[family], [[seed]]))
    assert kept == best(made @ direction, 6)
    assert bool(blank[kept].any())


@torch.no_grad()
@with_blanks
def test_inside_the_language_model_they_are_tokens_like_any_other(family: str, seed: int) -> None:
    inputs = batch(FAMILIES[family], [[seed]])
    rows = built(family, "eager")(**inputs, output_attentions=True).attentions[1][0].mean(0)[-1]
    row = rows[(inputs["input_ids"][0] >= IMAGE) & (inputs["input_ids"][0] <= IMAGE + 1)]
    blank = [number for number, slot in enumerate(FAMILIES[family].patches(seed)) if not slot]
    budget = 1 + int((row >= row[blank].max()).sum())  # as many as it takes to reach one of them
    spy = Spy(attention=LastQueryAttention())
    spy.stage, spy.decoder_layer = "decoder", lambda info: 2  # type: ignore[misc,method-assign]
    kept_by(built(family), spy, budget, inputs)
    assert close(spy.seen[0]["attention"], row)
    [[kept]] = kept_by(built(family), "fastv@2", budget, inputs)
    assert kept == best(row, budget) and set(kept) & set(blank)


def test_a_cls_token_in_a_slot_of_its_own() -> None:
    """LLaVA with vision_feature_select_strategy="full": the CLS token's slot comes first."""
    family, model = FAMILIES["llava"], copy.deepcopy(built("llava"))
    model.config.vision_feature_select_strategy = "full"
    inputs = batch(family, [[0]])
    at = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    for name, value in (("input_ids", IMAGE), ("attention_mask", 1)):
        old = inputs[name]
        inputs[name] = torch.cat([old[:, :at], torch.tensor([[value]]), old[:, at:]], dim=1)
    before = model(**inputs).logits
    with torch.no_grad(), vlmprune.prune(model, "hiprune:1.0") as session:
        assert torch.equal(model(**inputs).logits, before)
    assert session.last.cells[0][0].tolist() == [-1, *range(36)]
    assert kept_by(model, "hiprune", 36, inputs) == [[list(range(1, 37))]]
    spy = Spy(keys=EncoderKeys(), received=ReceivedAttention())
    kept_by(model, spy, 9, inputs)
    other = Spy(keys=EncoderKeys(), received=ReceivedAttention())
    kept_by(built("llava"), other, 9, batch(family, [[0]]))
    assert torch.equal(spy.seen[0]["received"], other.seen[0]["received"])
    assert torch.equal(spy.seen[0]["keys"].rows, other.seen[0]["keys"].rows)


# ------------------------------------------------------------------ OneVision's images that are not cut


ONE = [IMAGE] * 26  # the whole image and a newline slot


def several_beside_one(family: Family) -> dict[str, Tensor]:
    """Two images in a sample (the processor then cuts none of them), and a sample of one, cut into tiles.

    As the processor writes it: `batch_num_images` beside the pixels, whose tiles are filled up with zeros.
    """
    first, second, alone = (family.image(seed)[0] for seed in (0, 3, 1))
    texts = [text(5, number) for number in range(5)]
    rows = [[*texts[0], *ONE, *texts[1], *ONE, *texts[2]], [*texts[3], *family.image(1)[1], *texts[4]]]
    width, tiles = max(map(len, rows)), alone["pixel_values"].shape[1]
    pixels = torch.zeros(3, tiles, 3, 20, 20)
    pixels[0, :1], pixels[1, :1], pixels[2] = (
        first["pixel_values"][0, :1], second["pixel_values"][0, :1], alone["pixel_values"][0]
    )  # fmt: skip
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": pixels,
        "image_sizes": torch.cat([image["image_sizes"] for image in (first, second, alone)]),
        "batch_num_images": torch.tensor([2, 1]),
    }


@torch.no_grad()
def test_images_that_onevision_does_not_cut() -> None:
    model, inputs = built("llava_onevision"), several_beside_one(FAMILIES["llava_onevision"])
    greedy = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    before, vanilla = model(**inputs).logits, model.generate(**inputs, **greedy)
    for method in ("hiprune:1.0", "divprune:1.0", "fastv:1.0"):
        with vlmprune.prune(model, method) as session:
            assert torch.equal(model(**inputs).logits, before)
            assert torch.equal(torch.stack(model.generate(**inputs, **greedy).logits), torch.stack(vanilla.logits))
        assert [[grid.frames for grid in grids] for grids in session.last.grids] == [[1, 1], [3]]
        assert [cells.tolist() for cells in session.last.cells[0]] == [[*range(25), -1]] * 2
    beams = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    with vlmprune.prune(model, "hiprune:1.0"):
        answers = model.generate(**inputs, **beams)
    assert torch.equal(answers, model.generate(**inputs, **beams))
    whole = FAMILIES["llava_onevision"].slots(1)
    with vlmprune.prune(model, "hiprune:0.5") as session:
        pruned = model.generate(**inputs, **greedy).logits
        assert session.last.tokens == [(52, 26), (whole, round(whole / 2))]
        kept = session.last.kept
        encoded = vlmprune.encode_images(model, inputs, ["hiprune"])
        again = model.generate(**encoded.inputs(), **greedy).logits
    assert torch.equal(torch.stack(pruned), torch.stack(again))
    assert all(torch.equal(a, b) for x, y in zip(kept, session.last.kept, strict=True) for a, b in zip(x, y))
    assert kept_by(model, "hiprune", 25, inputs)[0] == [list(range(25))] * 2


def test_planted_objects_in_images_that_onevision_does_not_cut() -> None:
    chance, objects = random.Random(0), {}
    for seed in (0, 3):
        objects[seed] = {(0, row, col) for row, col in chance.sample([(r, c) for r in range(5) for c in range(5)], 4)}
    objects[1] = squares("llava_onevision", 1, 4, chance)
    painted = FAMILIES["llava_onevision"].painted({seed: sorted(patches) for seed, patches in objects.items()}, 100.0)
    kept = kept_by(brightness_tower("llava_onevision"), BrightKeys(), 4, several_beside_one(painted))
    assert kept[0] == [sorted(5 * row + col for _, row, col in objects[seed]) for seed in (0, 3)]
    assert kept[1] == [covering("llava_onevision", 1, objects[1])]


@torch.no_grad()
def test_onevision_with_another_limit_in_the_call() -> None:
    """`vision_aspect_ratio` given to `generate`: the canvas of 8 x 10 patches is not shrunk."""
    family, model, canvas = FAMILIES["llava_onevision"], brightness_tower("llava_onevision"), ONEVISION[2]
    spots = {(1, 2, 3): 2 * 11 + 3 - 11, (4, 2, 1): 6 * 11 + 6}  # patches of the canvas, whose first row is padding
    arguments = family.painted({2: list(spots)}, 100.0).image(2)[0]
    assert canvas.rows == range(1, 9) and canvas.cols == range(10) and canvas.tiles == (2, 2)
    ids = torch.tensor([[*text(4, 0), *[IMAGE] * (25 + 8 * 11), *text(4, 1)]])
    with vlmprune.prune(model, Recipe((Stage(BrightKeys(), 2),))) as session:
        model.generate(input_ids=ids, **arguments, vision_aspect_ratio="anyres_max_9", max_new_tokens=1)
    assert session.last.kept[0][0].tolist() == sorted(25 + at for at in spots.values())
