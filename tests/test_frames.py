"""Budgets a frame (or tile), and what stands between the frames of a video."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import SEEDS, batch, built, runnable, with_specs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vlmprune
from vlmprune.core.method import Method
from vlmprune.core.needs import Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import Grid, ImageView, Merged, ModelInfo, Tokens, TowerRows
from vlmprune.models import adapter_for
from vlmprune.runtime.select import shares
from vlmprune.testing import FAMILIES, image_numbers
from vlmprune.testing.weights import IMAGE, VIDEO

TOLERANCE = 2e-4
FRAMED = [key for key, family in FAMILIES.items() if family.in_parts]
framed = pytest.mark.parametrize("family", FRAMED)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_families_with_tiles_or_frames() -> None:
    assert set(FRAMED) >= {
        "llava_next", "llava_onevision", "llava_onevision video", "video_llava video", "qwen2_vl video", "internvl",
        "qwen2_5_vl video", "qwen3_vl video", "qwen3_5 video", "smolvlm", "idefics3",
    }  # fmt: skip
    assert not set(FRAMED) & {
        "llava", "llava with SigLIP", "video_llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5",
        "qwen3_5_moe", "gemma3", "paligemma", "paligemma2",
    }  # fmt: skip


# ------------------------------------------------------------------ the split


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 800), min_size=1, max_size=40), st.data())
def test_shares(sizes: list[int], data: st.DataObject) -> None:
    """All of the budget is given out, no part gets more than it has, and each is within one of its exact share."""
    keep = data.draw(st.integers(1, sum(sizes)))
    budgets = shares(sizes, keep)
    assert sum(budgets) == keep and len(budgets) == len(sizes)
    for budget, size in zip(budgets, sizes, strict=True):
        assert 0 <= budget <= size
        assert abs(budget * sum(sizes) - keep * size) < sum(sizes)
    if len(set(sizes)) == 1:
        assert max(budgets) - min(budgets) <= 1
    for parts in range(1, len(sizes)):  # a larger budget never takes from the first parts together
        assert keep == sum(sizes) or sum(shares(sizes, keep + 1)[:parts]) >= sum(budgets[:parts])


# ------------------------------------------------------------------ each frame by itself


class Watched(Method):
    """Keeps the first tokens and remembers the whole image as another method would be shown it."""

    name = "watched"

    def __init__(self, other: Method) -> None:
        self.other, self.stage, self.seen, self.per = other, other.stage, list[ImageView](), "image"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return self.other.needs(info)

    def decoder_layer(self, info: ModelInfo) -> int | None:
        return self.other.decoder_layer(info)

    def select(self, view: ImageView) -> Tensor:
        self.seen.append(view)
        return torch.arange(view.keep)


def whole_images(family: str, method: Method, inputs: dict[str, Tensor]) -> list[ImageView]:
    watched = Watched(method)
    with torch.no_grad(), vlmprune.prune(built(family), Recipe((Stage(watched, 1),))):
        built(family)(**inputs)
    return watched.seen


def frames_of(family: str, seed: int) -> list[int]:
    """The tile or frame of each slot; one without a patch goes with the next slot that has one, or the last."""
    if views := FAMILIES[family].kind.views:  # of the whole image and of its crops, which several tiles make
        grid, cells = views(seed)
        return [cell // (grid.rows * grid.cols) for cell in cells]
    frames: list[int] = []
    for slot in reversed(FAMILIES[family].patches(seed)):
        frames.append(slot[0][0] if slot else frames[-1] if frames else -1)
    if -1 in frames:
        frames = [max(frames) if frame < 0 else frame for frame in frames]
    return frames[::-1]


def one_frame(view: ImageView, tokens: list[int], frame: int, keep: int) -> ImageView:
    """Only these tokens of an image, which are all that it has of a frame."""

    def part(value: Any) -> Any:
        if isinstance(value, TowerRows):
            return TowerRows(value.rows[tokens], None if value.cls is None else value.cls[frame, None])
        if isinstance(value, Tokens):
            return Tokens(value.visual[tokens], value.text)
        return value[tokens]

    signals = {name: part(value) for name, value in view.signals.items()}
    return ImageView(keep, view.slots[tokens], view.grid, view.info, signals, view.seed, view.cells[tokens])


def framewise(family: str, seed: int, method: Method, view: ImageView, keep: int) -> list[tuple[Tensor, Any]]:
    """What the method makes of each frame alone: (slots of the frame's tokens, its selection among them)."""
    frame_of, slots = frames_of(family, seed), view.slots.tolist()
    groups = {frame: [i for i, slot in enumerate(slots) if frame_of[slot] == frame] for frame in sorted(set(frame_of))}
    made, given, before = [], 0, 0
    for frame, tokens in groups.items():
        before += len(tokens)
        budget = keep * before // len(slots) - given  # in proportion, what does not divide spread over the order
        given += budget
        if budget == len(tokens) and method.name != "visionzip":  # which merges, and so makes these tokens anew too
            made.append((view.slots[tokens], torch.arange(budget)))
        elif budget:
            made.append((view.slots[tokens], method.select(one_frame(view, tokens, frame, budget))))
    return made


FRAMEWISE = ["divprune", "hiprune", "hiprune(alpha=1.0)", "fastv@2", "dart@2", "visionzip"]


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in FRAMED for name in FRAMEWISE if runnable(family, [f"{name}:1"])]
)
@pytest.mark.parametrize("keep", [0.3, 7, 0.85])
def test_each_frame_is_the_method_on_that_frame_alone(family: str, name: str, keep: float | int) -> None:
    method = vlmprune.recipe(name, 1).stages[0].method
    inputs, seeds = batch(FAMILIES[family], SEEDS), [seed for sample in SEEDS for seed in sample]
    views = whole_images(family, method, inputs)
    method.per = "frame"
    with vlmprune.prune(built(family), method, keep=keep) as session:
        built(family)(**inputs)
    found = [image for sample in session.last.kept for image in sample]
    for seed, view, kept in zip(seeds, views, found, strict=True):
        count = FAMILIES[family].slots(seed)
        budget = keep if isinstance(keep, int) else round(keep * count)
        if budget >= len(view.slots):  # every slot with a patch fits, and the first of the others
            blank = [slot for slot in range(count) if slot not in view.slots]
            assert kept.tolist() == sorted(view.slots.tolist() + blank[: budget - len(view.slots)])
            continue
        expected: list[int] = []
        for slots, made in framewise(family, seed, method, view, budget):
            tokens = made.anchors[made.anchors >= 0] if isinstance(made, Merged) else made
            expected += slots[tokens].tolist()
        assert kept.tolist() == sorted(set(expected))
        if name == "visionzip":
            continue  # its CLS tokens have no slot
        assert len(kept) == budget
        frames, shown = torch.tensor(frames_of(family, seed)), view.slots
        for frame in set(frames.tolist()):
            share = budget * int((frames[shown] == frame).sum()) / len(shown)
            assert abs(int((frames[kept] == frame).sum()) - share) < 1
    assert session.last.tokens == [
        (sum(counts), sum(keep if isinstance(keep, int) else round(keep * count) for count in counts))
        for counts in [[FAMILIES[family].slots(seed) for seed in sample] for sample in SEEDS]
    ]


@torch.no_grad()
@framed
def test_the_default_is_one_budget_for_the_image(family: str) -> None:
    """All frames compete, but for methods whose authors act tile by tile; VisionZip's CLS token sees one only."""
    inputs = batch(FAMILIES[family], SEEDS)

    def kept(spec: str) -> list[list[int]]:
        with vlmprune.prune(built(family), spec) as session:
            built(family)(**inputs)
        return [image.tolist() for sample in session.last.kept for image in sample]

    whole, tiled = ["divprune", "fastv"], ["visionzip"]
    (tiled if "llava" in family else whole).append("hiprune")
    whole, tiled = ([name for name in names if runnable(family, [f"{name}:1"])] for names in (whole, tiled))
    assert all(kept(f"{name}:0.3") == kept(f"{name}(per=image):0.3") for name in whole)
    assert any(kept(f"{name}:0.3") != kept(f"{name}(per=frame):0.3") for name in whole)
    assert all(kept(f"{name}:0.3") == kept(f"{name}(per=frame):0.3") for name in tiled)


@torch.no_grad()
@framed
def test_a_budget_below_the_number_of_frames(family: str) -> None:
    """Some frames then keep nothing; never too many."""
    for spec in runnable(family, ["hiprune(per=frame):1", "fastv(per=frame):2", "visionzip:1", "visionzip:2"]):
        with vlmprune.prune(built(family), spec) as session:
            built(family)(**batch(FAMILIES[family], [[0], [1]]))
        assert [after for _, after in session.last.tokens] == [int(spec[-1])] * 2


# ------------------------------------------------------------------ how it is written


@pytest.mark.parametrize(
    "text", ["divprune(per=frame):0.3", "fastv(per=frame)@3:64", "hiprune(alpha=0.2, per=image):9"]
)
def test_per_in_a_recipe(text: str) -> None:
    parsed = vlmprune.recipe(text)
    assert str(vlmprune.recipe(str(parsed))) == str(parsed)
    assert parsed.stages[0].method.per == ("image" if "image" in text else "frame")
    assert vlmprune.recipe(str(parsed)) == parsed
    assert vlmprune.recipe("divprune", 0.3, per="frame") == vlmprune.recipe("divprune(per=frame):0.3")
    assert "per" not in str(vlmprune.recipe("divprune:0.3"))


@pytest.mark.parametrize("name", ["divprune", "fastv", "hiprune", "visionzip", "random", "downsample"])
def test_a_wrong_per_is_one_sentence(name: str) -> None:
    for spec, options in ((f"{name}(per=row):0.3", {}), (f"{name}:0.3", {"per": "row"}), (f"{name}:0.3", {"per": 2})):
        with pytest.raises(vlmprune.UserError, match=rf"^{name}: per=.* must be [^.]*'frame'[^.]*\.$") as error:
            vlmprune.recipe(spec, **options)
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------ between the frames


VIDEOS = [key for key, family in FAMILIES.items() if "video" in key or "mixed" in key or family.text_between]


@torch.no_grad()
@with_specs(["divprune:3", "fastv(per=frame):3", "visionzip:4", "hiprune:0.5 > fastv(per=frame)@2:1"], VIDEOS)
def test_text_between_frames_is_never_lost(family: str, spec: str) -> None:
    """Timestamps before a frame, markers around it and between tiles."""
    inputs, numbers = batch(FAMILIES[family], SEEDS), image_numbers(FAMILIES[family], [[*sample] for sample in SEEDS])
    with vlmprune.prune(built(family), spec) as session:
        built(family)(**inputs)
    for row, columns in enumerate(session.last.columns):
        text = (numbers[row] < 0) & inputs["attention_mask"][row].bool()
        left = columns[columns >= 0]
        assert left[numbers[row][left] < 0].tolist() == text.nonzero().squeeze(1).tolist()  # each once, in order
        assert len(left) - int(text.sum()) == session.last.tokens[row][1]
    for ids, sample in zip(inputs["input_ids"], SEEDS, strict=True):
        assert len(stretches(ids)) == sum(FAMILIES[family].runs(seed) for seed in sample)


def test_the_families_with_text_between_frames_or_tiles() -> None:
    found = {key for key, family in FAMILIES.items() if family.text_between}
    assert found >= {"qwen3_vl video", "qwen3_vl mixed", "qwen3_5 video", "smolvlm", "idefics3"}
    assert not found & {"llava_next", "internvl", "qwen2_vl video", "video_llava video", "llava_onevision video"}


def stretches(ids: Tensor) -> list[list[int]]:
    """Columns of each run of placeholders."""
    runs: list[list[int]] = []
    for column in torch.isin(ids, torch.tensor([IMAGE, VIDEO])).nonzero().squeeze(1).tolist():
        if runs and runs[-1][-1] == column - 1:
            runs[-1].append(column)
        else:
            runs.append([column])
    return runs


# ------------------------------------------------------------------ merged tokens among the frames

BY_HAND = [key for key, family in FAMILIES.items() if "by hand" not in family.lacks and not family.mixed]


@torch.no_grad()
@pytest.mark.parametrize("family", BY_HAND)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_merged_tokens_stand_where_their_frame_stands(family: str, seed: int) -> None:
    """VisionZip put together by hand, frame by frame, and run through the text model alone, deepstack included."""
    model, name = built(family), FAMILIES[family].name
    keep = 24 if name == "llava_next" else 7  # enough for contextual tokens of each tile, whose place is special there
    method, info, inner = (
        vlmprune.recipe("visionzip:7").stages[0].method,
        adapter_for(model).info,
        adapter_for(model).inner,
    )
    inputs = batch(FAMILIES[family], [[seed]])
    ids = inputs["input_ids"][0]
    [view] = whole_images(family, method, inputs)
    keep = min(keep, len(view.slots) - 1)
    with vlmprune.prune(model, "visionzip", keep=keep):
        logits = model(**inputs).logits[0]
    columns, runs = torch.isin(ids, torch.tensor([IMAGE, VIDEO])).nonzero().squeeze(1), stretches(ids)
    # by stretch: the column that lends each new token its position (a CLS token's is the first), and its features
    new: dict[int, list[tuple[int, Tensor]]] = {}
    kinds: list[tuple[int, int]] = []  # by which tiles on a canvas are put together: its kind, and its place
    for slots, made in framewise(family, seed, method, view, keep):
        starts = [run[0] for run in runs]
        first = max(start for start in starts if start <= int(columns[slots[0]]))
        rows = inner.multi_modal_projector(made.features) if FAMILIES[family].tower_rows else made.features
        for row, anchor in zip(rows, made.anchors.tolist(), strict=True):
            column = int(columns[slots[anchor]]) if anchor >= 0 else first
            begin = max(start for start in starts if start <= column)  # text stands between the rows of Mistral 3
            new.setdefault(begin, []).append((column, row))
        count, last = len(rows), len(rows) - round(10 / 64 * len(rows))
        dominant = [(1, int(slots[anchor])) for anchor in made.anchors[1:last].tolist()]
        kinds += [(0, 0)] * count if int(slots[0]) == 0 else [(2, 0), *dominant, *[(3, 0)] * (count - last)]
    if name == "llava_next":  # the whole image's, dominant ones of all tiles by place, CLS tokens, contextual ones
        [(first, made_tokens)] = new.items()
        new = {first: [made_tokens[i] for i in sorted(range(keep), key=kinds.__getitem__)]}
    assert sum(map(len, new.values())) == keep
    table, at = model.get_input_embeddings(), {column: number for number, column in enumerate(columns.tolist())}
    tokens: list[tuple[int, Tensor]] = []  # of the whole prompt
    for column in range(len(ids)):
        tokens += new.get(column, []) if column in at else [(column, table(ids[column]))]
    order = [column for column, _ in tokens]
    given: dict[str, Any] = {"position_ids": torch.tensor([order])}
    if hasattr(inner, "get_rope_index"):
        known = {"attention_mask": inputs["attention_mask"], **adapter_for(model).position_inputs(inputs)}
        given["position_ids"] = inner.get_rope_index(inputs["input_ids"], **known)[0][:, :, order]
    elif method.positions(info) == "compact":
        given["position_ids"] = torch.arange(len(order))[None]
    text = adapter_for(model).text_model
    if hasattr(text, "_deepstack_process"):  # a new token gets what deepstack has for the slot of its anchor
        encode = inner.get_video_features if "video" in family else inner.get_image_features
        levels = encode(**FAMILIES[family].image(seed)[0]).deepstack_features
        taken = [at[column] for column in order if column in at]
        given["deepstack_visual_embeds"] = [torch.cat(level)[taken] for level in levels]
        given["visual_pos_masks"] = torch.tensor([[column in at for column in order]])
    embeds, ones = torch.stack([row for _, row in tokens])[None], torch.ones(1, len(order), dtype=torch.long)
    expected = model.get_output_embeddings()(
        text(inputs_embeds=embeds, attention_mask=ones, use_cache=False, **given)[0]
    )[0]
    assert expected.shape == logits.shape and float((expected - logits).abs().max()) < TOLERANCE
    vanilla = model(**inputs).logits[0, -1]
    assert float((vanilla - logits[-1]).abs().max()) > 50 * TOLERANCE


# ------------------------------------------------------------------ a smaller video


def pictures(pixels: Tensor, frames: int, rows: int, cols: int) -> Tensor:
    """The processor's rows of patches as pictures [2 * frames, 3, 4 * rows, 4 * cols], patch by patch."""
    made = torch.empty(frames, 2, 3, 4 * rows, 4 * cols)
    for frame in range(frames):
        for row in range(rows):
            for col in range(cols):
                square = (frame * (rows // 2) + row // 2) * (cols // 2) + col // 2
                patch = pixels[4 * square + 2 * (row % 2) + col % 2].view(3, 2, 4, 4).transpose(0, 1)
                made[frame, :, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = patch
    return made.flatten(0, 1)


RESIZED = [key for key in FRAMED if "video" in key and "video_grid_thw" in FAMILIES[key].image(0)[0]]


@pytest.mark.parametrize("family", RESIZED)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_video_is_resized_frame_by_frame(family: str, seed: int) -> None:
    arguments = FAMILIES[family].image(seed)[0]
    frames, rows, cols = arguments["video_grid_thw"][0].tolist()
    smaller = Grid(rows // 2 - 1, cols // 2 - 1, frames)
    call = adapter_for(built(family)).resize("video", dict(arguments), [smaller])
    assert call["video_grid_thw"].tolist() == [[frames, 2 * smaller.rows, 2 * smaller.cols]]
    before = pictures(arguments["pixel_values_videos"], frames, rows, cols)
    size = (8 * smaller.rows, 8 * smaller.cols)
    expected = nn.functional.interpolate(before, size=size, mode="bicubic", antialias=True)
    assert torch.equal(pictures(call["pixel_values_videos"], *call["video_grid_thw"][0].tolist()), expected)
    with torch.no_grad(), vlmprune.prune(built(family), "downsample", keep=frames) as session:
        built(family)(**batch(FAMILIES[family], [[seed]]))
    middle = rows // 4 * (cols // 2) + cols // 4  # of a frame that is one slot now
    assert session.last.kept[0][0].tolist() == [frame * (rows * cols // 4) + middle for frame in range(frames)]
