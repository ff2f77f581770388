"""Overlays: what is drawn where, and the mapping of a processor's crop back onto the photo."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import save_clip, save_llava
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vlmprune
from vlmprune.ask import answer
from vlmprune.ask.media import open_image
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import check_picture
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid, Whole
from vlmprune.drawing import run
from vlmprune.drawing.compare import Comparison, Side
from vlmprune.drawing.patches import CONTOUR, GATHERED, PARTS, draw
from vlmprune.drawing.run import draw_run
from vlmprune.drawing.sheet import FLIPPED, Key, Panel, fit, sheet
from vlmprune.drawing.shown import Shown, coarsen
from vlmprune.drawing.window import Window, seen_window
from vlmprune.runtime.vision import cell_slots
from vlmprune.testing import FAMILIES, prompt


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("model")))


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize(("grid", "size"), [(Grid(4, 4), (64, 64)), (Grid(3, 7), (140, 60)), (Grid(5, 2), (41, 97))])
def test_kept_patches_are_unchanged_and_dropped_ones_grey(grid: Grid, size: tuple[int, int]) -> None:
    image = noise(*size)
    kept = torch.tensor([0, grid.cols + 1, grid.size - 1])
    before, after = array(image), array(draw(image, Shown(grid, kept)))
    rows = (np.arange(size[1]) + 0.5) * grid.rows // size[1]
    cols = (np.arange(size[0]) + 0.5) * grid.cols // size[0]
    is_kept = np.isin(rows[:, None] * grid.cols + cols[None, :], kept.numpy())
    assert (after[is_kept] == before[is_kept]).all()
    contour = (after == CONTOUR).all(-1)
    dropped = after[~is_kept & ~contour]
    assert (dropped == dropped[:, :1]).all(), "no colour is left"
    assert dropped.std() < 0.4 * before[~is_kept].std(), "and little contrast"
    assert contour.any() and not (contour & is_kept).any()


def test_contour_surrounds_kept_patches_only() -> None:
    after = array(draw(Image.new("RGB", (40, 40)), Shown(Grid(4, 4), torch.tensor([5]))))
    contour = (after == CONTOUR).all(-1)
    expected = np.zeros((40, 40), bool)
    expected[9:21, 9:21] = True
    expected[10:20, 10:20] = False
    assert (contour == expected).all()


def test_everything_kept_is_the_picture_itself() -> None:
    image = noise(30, 20)
    assert (array(draw(image, Shown(Grid(2, 3), torch.arange(6)))) == array(image)).all()


def test_cell_lines_lie_between_kept_patches() -> None:
    after = array(draw(Image.new("RGB", (40, 20)), Shown(Grid(2, 4), torch.arange(8), resized=True)))
    contour = (after == CONTOUR).all(-1)
    assert np.flatnonzero(contour[0]).tolist() == [9, 19, 29]
    assert np.flatnonzero(contour[:, 0]).tolist() == [9]


def test_a_window_darkens_what_the_model_did_not_see() -> None:
    image = Image.new("RGB", (60, 20), (200, 100, 50))
    after = array(draw(image, Shown(Grid(2, 2), torch.tensor([0])), window=Window(20, 0, 40, 20)))
    assert (after[:, :18] < 60).all() and (after[:, 42:] < 60).all()
    assert (after[0:10, 20:30] == (200, 100, 50)).all()
    assert (after[12:, 32:40] > 170).all()


def test_a_token_without_a_slot_is_passed_over() -> None:
    image = noise(16, 16)
    assert (
        draw(image, Shown(Grid(2, 2), torch.tensor([-1, 3]))).tobytes()
        == draw(image, Shown(Grid(2, 2), torch.tensor([3]))).tobytes()
    )


@pytest.mark.parametrize(("grid", "kept"), [(Grid(2, 2, 3), [0]), (Grid(2, 2), [4])])
def test_what_cannot_be_drawn(grid: Grid, kept: list[int]) -> None:
    with pytest.raises(UserError):
        Shown(grid, torch.tensor(kept))


def test_fit_changes_size_only() -> None:
    assert fit(noise(112, 80)).size == (448, 320)
    assert fit(noise(600, 500)).size == (600, 500)
    assert fit(noise(3000, 1500)).size == (896, 448)
    assert fit(Image.new("L", (5000, 1))).size == (896, 1)


# ---------------------------------------------------------------- resized images


@pytest.mark.parametrize(
    ("grid", "small"), [(Grid(14, 14), Grid(8, 8)), (Grid(9, 16), Grid(3, 5)), (Grid(6, 4), Grid(6, 4))]
)
def test_coarsen_finds_the_grid_of_a_resized_image(grid: Grid, small: Grid) -> None:
    lattice = cell_slots(small, grid)
    some = torch.tensor([0, 3, small.size - 1])
    found = coarsen(lattice[some], lattice, grid)
    assert found is not None and found[0] == small and found[1].tolist() == some.tolist()


def test_coarsen_refuses_scattered_slots() -> None:
    assert coarsen(torch.tensor([0]), torch.tensor([0, 5, 7]), Grid(3, 3)) is None


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize("size", [(361, 240), (240, 361), (100, 100), (97, 61)])
@pytest.mark.parametrize("crop", [(112, 112), (84, 100)])
def test_the_window_is_what_clip_crops(size: tuple[int, int], crop: tuple[int, int]) -> None:
    """A picture whose red says the column and whose green says the row comes out with the window's coordinates."""
    width, height = size
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    picture = Image.fromarray(np.dstack([255 * columns / width, 255 * rows / height, rows * 0]).astype(np.uint8))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 112}, crop_size={"height": crop[0], "width": crop[1]}, do_normalize=False, resample=2
    )
    seen = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
    window = seen_window(processor, size)
    across, down = width / 255, height / 255
    pixel = width / (112 * max(1, width / height)) + 0.02 * width  # one pixel of the crop, and rounding of colours
    assert abs(255 * seen[0, 0, 0] * across - window.left) < pixel + 1
    assert abs(255 * seen[0, 0, -1] * across - window.right) < pixel + 2
    assert abs(255 * seen[1, 0, 0] * down - window.top) < pixel + 1
    assert abs(255 * seen[1, -1, 0] * down - window.bottom) < pixel + 2


def test_a_processor_without_a_crop_shows_everything() -> None:
    assert seen_window(Qwen2VLImageProcessorPil(), (300, 200)) == Window(0, 0, 300, 200)
    assert seen_window(None, (300, 200)) == Window(0, 0, 300, 200)


@pytest.mark.parametrize(
    ("size", "window", "options"),
    [
        ((40, 20), (40, 40), {}),  # enlarged 1.2 times
        ((20, 40), (40, 40), {}),
        ((48, 48), (48, 48), {}),
        ((47, 31), (47, 48), {}),  # 48 x 31, rounded down
        ((100, 30), (100, 30), {}),  # three tiles and the whole picture
        ((40, 20), (40, 20), {"resize_to_max_canvas": True}),  # two tiles
        ((100, 30), (100, 30 * 48 / 14), {"max_patches": 1}),
    ],
)
def test_a_picture_that_is_padded_in_its_one_tile(
    size: tuple[int, int], window: tuple[float, float], options: dict[str, Any]
) -> None:
    """As Llama 4's processor does, which needs torchvision: with it, 900 sizes and options gave these windows."""
    settings = SimpleNamespace(**{
        "size": {"height": 48, "width": 48}, "max_patches": 4, "resize_to_max_canvas": False, **options
    })  # fmt: skip
    assert seen_window(settings, size) == pytest.approx((0, 0, *window))


# ---------------------------------------------------------------- sheets


def report(*stages: tuple[int, list[list[int]]], grids: list[Grid | None]) -> RunReport:
    """A run of one sample; for each stage, the slots kept of each image."""
    kept = [(layer, [[torch.tensor(image) for image in images]]) for layer, images in stages]
    wholes = [(Whole("image", grid, torch.arange(grid.size)),) if grid else () for grid in grids]
    return RunReport(kept=kept[-1][1], stages=kept, tokens=[(8, 2)], entering=[4.0], grids=[grids], wholes=[wholes])


def test_a_panel_for_each_stage_and_a_row_for_each_image() -> None:
    grids: list[Grid | None] = [Grid(2, 2), Grid(2, 2)]
    images = [noise(448, 448), noise(448, 448)]
    one = draw_run(report((0, [[0], [1]]), grids=grids), images)
    two = draw_run(report((0, [[0, 1], [1, 2]]), (2, [[0], [1]]), grids=grids), images, title="a method")
    assert two.width > 1.8 * one.width and min(one.height, two.height) > 2 * 448


def test_many_stages_go_on_below() -> None:
    stages = [(layer, [[0]]) for layer in range(9)]
    sheet = draw_run(report(*stages, grids=[Grid(2, 2)]), [noise(448, 448)])
    assert sheet.width < 3.5 * 448 and sheet.height > 3 * 448


def test_merged_tokens_are_not_passed_off_as_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, list[str]] = {}
    Image.new("RGB", (112, 112)).save(tmp_path / "in.png")
    for method in ("divprune:44", "pool:44", "visionzip:44"):
        texts = said.setdefault(method, [])

        def note(
            panels: Any, columns: int, lines: list[str], legend: list[Key], texts: list[str] = texts
        ) -> Image.Image:
            texts.extend([*lines, *(key.text for key in legend)])
            return noise(8, 8)

        monkeypatch.setattr(run, "sheet", note)
        question = "What number is on the plate?"
        answer(tmp_path / "in.png", question, method=method, overlay=tmp_path / "out.png")
    assert {"kept", "dropped"} <= {*said["divprune:44"]} and not any("merged" in text for text in said["divprune:44"])
    for method in ("pool:44", "visionzip:44"):
        assert any(text.startswith("merged") for text in said[method]) and "dropped" not in said[method]
    assert any(text.endswith("1 of the 44 stand at no patch") for text in said["visionzip:44"])  # its CLS token


def test_merged_patches_have_the_tint_of_their_token_and_neighbours_another() -> None:
    """Cells 0 and 1 went into the token at 1, cells 2 and 3 into the one at 3; 4 and 5 were dropped."""
    token, own = torch.tensor([1, 1, 3, 3, -1, -1]), torch.arange(6)
    grid = Grid(2, 3)
    after = array(draw(Image.new("RGB", (90, 60), (90, 90, 90)), Shown(grid, torch.tensor([1, 3]), token, own)))
    centre = {cell: tuple(after[15 + 30 * (cell // 3), 15 + 30 * (cell % 3)]) for cell in range(6)}
    assert centre[1] == centre[3] == (90, 90, 90)  # where the tokens stand
    assert len(set(centre[0])) > 1 and len(set(centre[2])) > 1 and centre[0] != centre[2]
    assert centre[4] == centre[5] and len(set(centre[4])) == 1


def test_a_token_that_holds_other_patches_does_not_show_the_one_it_stands_at() -> None:
    """ApET writes a basis token over another one: the patch there is gone, though a token stands there."""
    shown = Shown(Grid(1, 3), torch.tensor([0]), torch.tensor([-1, 0, -1]), torch.arange(3))
    after = array(draw(Image.new("RGB", (90, 30), (200, 10, 10)), shown))
    assert tuple(after[15, 15]) == tuple(after[15, 45]) != (200, 10, 10)
    assert (after[15, 30] == CONTOUR).all()


def test_kinds_of_kept_tokens_have_outlines_of_their_own() -> None:
    shown = Shown(
        Grid(1, 4), torch.tensor([0, 2]), parts={"anchors": torch.tensor([0]), "registers": torch.tensor([2])}
    )
    after = array(draw(Image.new("RGB", (160, 40), "white"), shown))
    assert tuple(after[0, 0]) == PARTS[0] and tuple(after[0, 80]) == PARTS[1]
    assert tuple(after[20, 20]) == (255, 255, 255) and not (after == CONTOUR).all(-1).any()


def test_a_resized_picture_is_drawn_as_the_model_saw_it() -> None:
    image = noise(64, 64)
    drawn = array(draw(image, Shown(Grid(2, 2), torch.arange(4), pixels=4, resized=True)))
    inside = drawn[4:24, 4:24]
    assert inside.std() < 0.6 * array(image)[4:24, 4:24].std()  # 8 x 8 pixels for 64 x 64
    told = array(draw(image, Shown(Grid(2, 2), torch.arange(4), resized=True)))
    assert (told[4:24, 4:24] == array(image)[4:24, 4:24]).all()  # of how many pixels is not known


def test_what_fusion_gathered_is_hatched() -> None:
    shown = Shown(Grid(1, 2), torch.tensor([0]), gathered=torch.tensor([1]))
    after = array(draw(Image.new("RGB", (80, 40), "white"), shown))
    where = (after == GATHERED).all(-1)
    assert where[:, 40:].any() and not where[:, :39].any()


def test_three_or_four_panels_stand_in_a_row_and_flips_are_marked() -> None:
    image, whole = noise(112, 112), Window(0, 0, 112, 112)
    side = Side("a", Shown(Grid(2, 2), torch.tensor([0])), 1, answer="yes")
    few = Comparison(image, whole, [side] * 9).sheet()
    many = Comparison(image, whole, [side] * 31).sheet(["a question"])
    assert few.width == 40 + 3 * 224 + 2 * 18 and many.width == 40 + 4 * 224 + 3 * 18
    plain = array(Comparison(image, whole, [side]).sheet())
    marked = array(Comparison(image, whole, [side._replace(flipped=True)]).sheet())
    assert (marked == FLIPPED).all(-1).any() and not (plain == FLIPPED).all(-1).any()


@torch.no_grad()
def test_an_image_cut_into_tiles_is_drawn_in_each_way_it_is_shown() -> None:
    """LLaVA-NeXT's tiles lie over the picture as the processor cut them, without its padding; a newline is no patch."""
    family = FAMILIES["llava_next"]
    model, inputs = family.build(), prompt(family, [[0]])
    with vlmprune.prune(model, "random", keep=1.0) as session:
        model(**inputs)
    base, tiles = session.last.wholes[0][0]
    height, width = inputs["image_sizes"][0].tolist()
    assert (base.name, tiles.name) == ("base tile", "tiles") and base.grid.rows == base.grid.cols
    assert (tiles.grid.rows > tiles.grid.cols) == (height > width)
    newlines = int((session.last.cells[0][0] < 0).sum())
    assert newlines == tiles.grid.rows and base.grid.size + tiles.grid.size + newlines == family.slots(0)
    for whole in (base, tiles):
        assert whole.cells[whole.cells >= 0].tolist() == list(range(whole.grid.size))
    picture = noise(width * 8, height * 8)
    alone = draw_run(report((0, [[0]]), grids=[Grid(2, 2)]), [picture])
    assert draw_run(session.last, [picture]).height > alone.height + fit(picture).height


def test_a_run_without_a_grid_is_refused() -> None:
    with pytest.raises(UserError, match="no grid"):
        draw_run(report((0, [[0]]), grids=[None]), [noise(8, 8)])


def test_a_sheet_wraps_long_text() -> None:
    short = sheet([Panel(noise(200, 100), "one line")], 3)
    long = sheet([Panel(noise(200, 100), "many words " * 20)], 3, ["a title of many words " * 5])
    assert long.width == short.width and long.height > short.height + 100


# ---------------------------------------------------------------- pictures from disk


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held upright
    noise(60, 20).save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(tmp_path / "photo.jpg").size == (20, 60)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    grey = noise(20, 10).convert("L")
    if mode == "I;16":
        image = Image.fromarray(array(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert("RGBA").convert(mode) if mode in ("RGBA", "LA") else grey.convert(mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "F") else "image.png")
    image.save(path)
    opened = open_image(path)
    assert opened.mode == "RGB"
    if mode != "1":
        assert np.abs(array(opened)[..., 0] - array(grey)).max() <= 2


def test_transparent_parts_lie_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "image.png")
    assert (array(open_image(tmp_path / "image.png")) == 255).all()


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "cut.jpg", "cut.png"])
def test_unreadable_pictures_are_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind in ("text", "empty"):
        path.write_text("hello" if kind == "text" else "")
    elif kind.startswith("cut"):
        noise(200, 200).save(path)
        path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=kind) as error:
        open_image(path)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"question": " "}, "no question"),
        ({"keep": 0.5}, "without a method"),
        ({"overlay": "out.png"}, "nothing to draw"),
        ({"method": "hiprune"}, "needs a budget"),
        ({"method": "hiprun", "keep": 0.5}, "did you mean 'hiprune'"),
        ({"method": "hiprune", "keep": 0.5, "overlay": "out.txt"}, "must end in"),
        ({"method": "hiprune", "keep": 0.5, "overlay": "nowhere/out.png"}, "no folder 'nowhere'"),
        ({"method": "hiprune", "keep": 0.5}, "no picture 'photo.png'"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        answer(**{"path": "photo.png", "question": "what is it ?", "model": "/no/model", **arguments})


def test_an_overlay_may_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_picture(tmp_path / "a.png", "overlay")


@pytest.mark.parametrize(
    ("method", "keep"), [("hiprune", 0.2), ("downsample", 9), ("divprune:0.5 > fastv@2:0.5", None), ("visionzip", 1.0)]
)
def test_run_answers_and_draws(method: str, keep: Any, model: str, tmp_path: Path) -> None:
    noise(150, 100).save(tmp_path / "photo.png")
    notes: list[str] = []
    target = tmp_path / "out.png"
    arguments = (tmp_path / "photo.png", "is there a zebra ?", model, method, keep, target)
    said = answer(*arguments, note=notes.append)
    assert said.text and "zebra" in notes[0]
    with Image.open(target) as drawn:
        panels = 2 if ">" in method else 1
        assert drawn.width == 40 + panels * 450 + (panels - 1) * 18  # 150 pixels, enlarged threefold
    assert answer(*arguments, note=notes.append).text == said.text


def test_run_says_what_the_question_is_read_by(model: str, tmp_path: Path) -> None:
    noise(150, 100).save(tmp_path / "photo.png")
    clip = str(save_clip(tmp_path / "clip"))

    def said(method: str, text_tower: str | None) -> list[str]:
        notes: list[str] = []
        arguments = (tmp_path / "photo.png", "what color is the ring ?", model, method, 0.2, None, text_tower)
        answer(*arguments, note=notes.append)
        return notes

    [embeddings], [tower] = said("trim", None), said("fuse(cdpruner)", clip)
    assert "the language model's embeddings of the question" in embeddings and "--text-tower" in embeddings
    assert tower == f"The picture is compared with the question by the text tower of {clip}."
    assert said("hiprune", None) == []
    assert said("hiprune", clip) == [f"No method here reads the question: {clip} is not used."]


def test_run_without_a_method_is_the_plain_model(model: str, tmp_path: Path) -> None:
    noise(150, 100).save(tmp_path / "photo.png")
    plain = answer(tmp_path / "photo.png", "what color is the ring ?", model)
    pruned = answer(tmp_path / "photo.png", "what color is the ring ?", model, "random", 1.0)
    assert plain.text == pruned.text and plain.report is None and plain.recipe is None
