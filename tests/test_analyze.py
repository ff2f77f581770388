"""`vlmprune analyze`: what is read is what the encoder computes, and each study says what its numbers say."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_cli import assert_one_sentence
from PIL import Image
from tiny_encoders import ENCODERS, GRID, LAYERS, SIDE, WITH_CLS, save_encoder
from tiny_folder import save_llava

from vlmprune import cli
from vlmprune.analyze import (
    STUDIES,
    ablations,
    attention,
    coco,
    decoder,
    dispersion,
    lone,
    objects,
    rankings,
    redundancy,
    removal,
    settings,
    sight,
    subject,
    variants,
)
from vlmprune.analyze.pictures import Picture, of_coco, photos, scenes
from vlmprune.analyze.reading import Reading, top_of
from vlmprune.analyze.subject import Subject
from vlmprune.author import USED, ClsAttention, Depth
from vlmprune.core.errors import UserError
from vlmprune.core.recipe import recipe
from vlmprune.core.view import Grid, ImageView, ModelInfo
from vlmprune.drawing.window import Window
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.runtime.taps import capture


def silent(what: str, done: int, due: int) -> None:
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder for each lone encoder, and one for a vision-language model."""
    made = {kind: str(save_encoder(kind, tmp_path_factory.mktemp(kind))) for kind in ENCODERS}
    return made | {"llava": str(save_llava(tmp_path_factory.mktemp("llava")))}


def read(name: str, tmp_path: Path, picture: Picture | None = None) -> Reading:
    return Subject(name, tmp_path).readings([picture or scenes(1)[0]], silent)[0]


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_lone_encoder_is_read_as_eager_attention_computes_it(
    kind: str, folders: dict[str, str], tmp_path: Path
) -> None:
    found = read(folders[kind], tmp_path)
    encoder = lone.load_encoder(kind, folders[kind], Subject(folders[kind], tmp_path)._config, "cpu")
    encoder.model.set_attn_implementation("eager")  # type: ignore[operator]
    inputs = encoder._inputs(scenes(1)[0].image)
    with torch.no_grad():
        maps = encoder.model(**inputs, output_attentions=True).attentions
    first = maps[0].shape[-1] - GRID**2
    received = torch.stack([one[0].mean((0, 1))[first:] for one in maps]).numpy()
    assert found.grid == Grid(GRID, GRID) and found.layers == LAYERS
    np.testing.assert_allclose(found.received, received, atol=2e-6)
    assert received.std(1).min() > 1e-3, "attention must not be uniform, or any map would do"
    assert (found.cls is not None) == (kind in WITH_CLS) == (first > 0)
    if found.cls is not None:
        paid = torch.stack([one[0].mean(0)[0, first:] for one in maps]).numpy()
        np.testing.assert_allclose(found.cls, paid, atol=2e-6)


def test_the_tower_of_a_model_is_read_in_all_layers(folders: dict[str, str], tmp_path: Path) -> None:
    picture = scenes(1)[0]
    found = read(folders["llava"], tmp_path, picture)
    loaded = Subject(folders["llava"], tmp_path).loaded
    tower = loaded.model.model.vision_tower
    tower.set_attn_implementation("eager")
    pixels = loaded.processor.image_processor(picture.image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        maps = tower(pixels, output_attentions=True).attentions
    received = torch.stack([one[0].mean((0, 1))[1:] for one in maps]).numpy()
    np.testing.assert_allclose(found.received, received, atol=2e-6)
    assert found.cls is not None and found.grid == Grid(7, 7)


def test_tokens_that_are_not_the_patches_in_order_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    encoder = lone.load_encoder("dino", folders["dinov2"], Subject(folders["dinov2"], tmp_path)._config, "cpu")
    embeddings: Any = encoder.model.embeddings
    embeddings.register_forward_hook(lambda module, args, out: torch.cat([out[:, :1], out[:, 1:].flip(1)], 1))
    with pytest.raises(UserError, match="not the patches of its picture"):
        encoder.read(scenes(1)[0].image)


def test_window_attention_is_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.SwinConfig(image_size=SIDE, patch_size=2, embed_dim=16, depths=[2], num_heads=[2],
                                     window_size=6)  # fmt: skip
    folder = save_encoder("vit", tmp_path / "model")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    transformers.SwinModel(config).save_pretrained(folder)
    with pytest.raises(UserError, match="attend"):
        read(str(folder), tmp_path)


def test_the_mask_is_cut_as_the_picture_is() -> None:
    image = Image.new("RGB", (40, 20))
    mask = np.zeros((20, 40), bool)
    mask[:, 10:20] = True
    reading = Reading(Grid(2, 2), Window(10, 0, 30, 20), np.ones((1, 4)), None, np.ones((4, 1)))
    cut = objects.seen_mask(Picture("one", image, mask), reading)
    assert cut.shape == (20, 20) and cut[:, :10].all() and not cut[:, 10:].any()
    assert objects.iou(np.array([0, 2]), reading.grid, cut) == 1.0
    assert objects.iou(np.array([0]), reading.grid, cut) == 0.5
    assert objects.iou(np.array([1, 3]), reading.grid, cut) == 0.0


# ---------------------------------------------------------------- numbers


def test_the_top_tenth_breaks_ties_by_the_lower_index() -> None:
    assert top_of(np.array([1.0, 2.0, 2.0, 0.0] * 5)).tolist() == [1, 2]
    assert len(top_of(np.arange(576.0))) == 58


def test_pairwise_distance_and_phases() -> None:
    grid = Grid(3, 4)
    assert dispersion.pairwise_distance(np.array([0, 3]), grid) == 3.0
    assert dispersion.pairwise_distance(np.array([0, 3, 8]), grid) == pytest.approx((3 + 2 + 13**0.5) / 3)
    found = dispersion.partition(np.array([1.0, 1.1, 0.5, 0.4, 0.45, 0.9, 0.95]))
    assert found is not None and (found.middle, found.deep, found.object_layer) == (2, 5, 4)
    assert 0.95 < found.explained < 1
    assert dispersion.partition(np.array([1.0, 2.0])) is None
    curves = np.tile([1.0, 1.1, 0.5, 0.4, 0.45, 0.9, 0.95], (4, 1))
    assert dispersion.stability(curves, found) == 1.0


def test_tokens_at_random_have_a_dispersion_of_one() -> None:
    draw = np.random.default_rng(0)
    received = draw.random((40, 144))
    reading = Reading(Grid(12, 12), Window(0, 0, 1, 1), received, None, np.ones((144, 1)))
    assert dispersion.dispersion_of(reading).mean() == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------- COCO


def encoded(runs: list[int]) -> str:
    """COCO's compressed spelling of run lengths."""
    text = ""
    for place, run in enumerate(runs):
        value, more = run - (runs[place - 2] if place > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | (32 if more else 0)) + 48)
    return text


def test_masks_of_coco_in_every_spelling(tmp_path: Path) -> None:
    mask = np.zeros((50, 70), bool)
    mask[5:41, 20:60] = True
    mask[10, 64] = True
    flat = mask.T.flatten().astype(int)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], flat, [2]])))).tolist()
    plain: dict[str, Any] = {"size": [50, 70], "counts": runs}
    for counts in (runs, encoded(runs)):
        assert (coco.union([{**plain, "counts": counts}], 50, 70) == mask).all()
    box = coco.union([[[20, 5, 59, 5, 59, 40, 20, 40]]], 50, 70)
    assert box[5:41, 20:60].all() and box.sum() == 36 * 40
    Image.new("RGB", (70, 50)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 70},
                   {"id": 2, "file_name": "b.png", "height": 9, "width": 9}],
        "annotations": [{"image_id": 1, "segmentation": plain}, {"image_id": 2, "segmentation": []}],
    }  # fmt: skip
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    [picture] = of_coco(file, tmp_path, 5)
    assert picture.mask is not None and (picture.mask == mask).all()
    content["images"][0]["width"] = 71
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="COCO"):
        of_coco(file, tmp_path, 5)


# ---------------------------------------------------------------- the command


def test_a_study_of_a_lone_encoder_and_what_is_not_computed_again(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["analyze", "dispersion", folders["dinov2"], "--limit", "3", "--out", str(tmp_path / "out")]
    assert cli.main(asked) == 0
    first = capsys.readouterr().out
    made = next(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert "The suggested object layer is" in first
    assert {path.suffix for path in made.glob("dispersion.*")} == {".md", ".png", ".svg", ".csv"}
    with (made / "dispersion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["layer"]) for row in rows] == list(range(LAYERS))

    def refuse(*given: Any) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(subject, "load_encoder", refuse)
    for path in made.glob("*.*"):
        path.unlink()  # as after an interrupted command, which has kept parts alone
    assert cli.main(asked) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError):
        cli.main([*asked, "--photos"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("analyze colours llava", "There is no study 'colours': choose one of attention"),
        ("analyze attention lava", "did you mean 'llava'"),
        ("analyze attention llava --limit 0", "--limit 0 must be at least 1"),
        ("analyze attention llava --images /nowhere", "is not a folder"),
        ("analyze attention llava --photos --images .", "both name pictures"),
        ("analyze objects llava --photos", "needs to know where objects are"),
        ("analyze objects llava --coco x.json", "needs its pictures"),
        ("analyze objects llava --coco /nowhere.json --images .", "There is no annotation file"),
        ("analyze attention llava --device nowhere", "is not a device"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(arguments.split(), sentence, tmp_path, capsys)


def test_photographs_begin_with_those_no_model_was_trained_on() -> None:
    assert {picture.name for picture in photos(3)} == {"chelsea", "coffee", "flower"}


def test_a_broken_reading_is_told(folders: dict[str, str], tmp_path: Path) -> None:
    read(folders["vit"], tmp_path)
    [file] = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="broken"):
        read(folders["vit"], tmp_path)


# ---------------------------------------------------------------- redundancy


def test_similarity_to_neighbours() -> None:
    same = np.ones((20, 3))
    assert redundancy.neighbour_similarity(same) == pytest.approx(np.ones(20))
    turns = np.array([[1.0, 0.0], [-1.0, 0.0]] * 10)
    found = redundancy.neighbour_similarity(turns)
    assert found[10] == pytest.approx(-0.2)  # on each side three of five are opposite
    assert found[0] == pytest.approx(-0.2) and redundancy.neighbour_similarity(turns[:2]) == pytest.approx([-1, -1])


def test_what_is_removed_is_what_is_said(folders: dict[str, str], tmp_path: Path) -> None:
    loaded = Subject(folders["llava"], tmp_path).loaded
    asking = next(removal.askings(loaded, 1))
    removing = removal.Removing(loaded)
    own, whole = removing.whole(asking)
    assert whole.removed == 0.0 and own.shape[0] == 1
    words = loaded.processor.tokenizer.decode(asking.inputs["input_ids"][0, asking.words])
    assert words.split()[0] in asking.sample.question.lower() and "<image>" not in words
    shorter, share = removing._less_text(asking, 0.5, seed=1)
    gone = asking.inputs["input_ids"].shape[1] - shorter["input_ids"].shape[1]
    assert gone == round(0.5 * len(asking.words)) and share == gone / len(asking.words)
    image = loaded.model.config.image_token_id
    assert int((shorter["input_ids"] == image).sum()) == int((asking.inputs["input_ids"] == image).sum())
    assert shorter["attention_mask"].shape == shorter["input_ids"].shape
    less = removing.without(asking, own, removal.Removal("visual", 0.75), 1)
    assert less.removed == pytest.approx(1 - round(0.25 * 49) / 49)
    # the loss is that of the model's own forward behind the whole prompt
    longer = {**asking.inputs, "input_ids": torch.cat([asking.inputs["input_ids"], own], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    with torch.no_grad():
        logits = loaded.model(**longer).logits[0, -own.shape[1] - 1 : -1]
    expected = -torch.log_softmax(logits, -1).gather(1, own[0, :, None]).mean()
    assert whole.loss == pytest.approx(float(expected), abs=1e-5)
    assert removing.without(asking, own, removal.Removal("visual", 0.9), 1).loss != pytest.approx(whole.loss, abs=1e-3)


# ---------------------------------------------------------------- the decoder


@pytest.mark.parametrize("options", ["lambda_=0", "lambda_=2,tau=0,top_share=0.5"])
def test_attention_of_a_pruned_decoder_is_that_of_eager_attention(
    options: str, folders: dict[str, str], tmp_path: Path
) -> None:
    """Without fusion the shares are sums over eager attention maps. With it, over a softmax of edited logits."""
    loaded = Subject(folders["llava"], tmp_path).loaded
    inputs = dict(next(removal.askings(loaded, 1)).inputs)
    whole, _ = sight.sights(loaded.model, inputs)
    asked = recipe(f"hilo({options}):0.2")
    found, candidates = sight.sights(loaded.model, inputs, asked)
    image = (inputs["input_ids"][0] == loaded.model.config.image_token_id).nonzero().squeeze(1)
    text = torch.arange(int(image.max()) + 1, inputs["input_ids"].shape[1])
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = loaded.model(**inputs, output_attentions=True).attentions
        attended = maps[0][0][:, text][:, :, image].sum(-1).mean()
        assert whole[0].visual == pytest.approx(float(attended), abs=1e-5)
        assert whole[3].visual == pytest.approx(float(maps[3][0][:, text][:, :, image].sum(-1).mean()), abs=1e-5)
    assert whole[0].tokens == len(image) / inputs["input_ids"].shape[1]
    kept = round(0.2 * 49)
    assert found[3].tokens == pytest.approx(kept / (kept + inputs["input_ids"].shape[1] - 49))
    assert found[3].gathered is None
    if "lambda_=0" in options:
        assert found[0].visual == pytest.approx(whole[0].visual, abs=1e-5) and not candidates
        return
    edited = maps[0][0][:, text].log()  # logits, but for a constant of each row
    rows = softened(edited, candidates[0], loaded, inputs, text)
    assert found[0].gathered == pytest.approx(float(rows[:, :, candidates[0]].sum(-1).mean()), abs=1e-4)
    assert found[0].visual == pytest.approx(float(rows[:, :, image].sum(-1).mean()), abs=1e-4)
    assert abs(found[0].gathered - float(maps[0][0][:, text][:, :, candidates[0]].sum(-1).mean())) > 0.01  # type: ignore[operator]


def softened(
    shares: torch.Tensor, candidates: torch.Tensor, loaded: Any, inputs: dict[str, Any], text: torch.Tensor
) -> torch.Tensor:
    """Attention [H, T, S] of the first layer after each of the largest half of the candidates' logits A is 3 A."""
    module = loaded.model.model.language_model.layers[0].self_attn
    with capture([module]) as calls, torch.no_grad():
        loaded.model(**inputs)
    [call] = calls[module]
    key = call.key[0].repeat_interleave(call.query.shape[1] // call.key.shape[1], 0)
    logits = call.query[0][:, text] @ key.transpose(-1, -2) * call.scaling
    logits = logits.masked_fill(shares == float("-inf"), float("-inf"))
    count = -(-len(candidates) // 2)
    largest = logits[:, :, candidates].topk(count, -1).indices
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, candidates[largest], True)
    return torch.where(chosen, 3 * logits, logits).softmax(-1)


def test_a_lone_encoder_has_no_decoder(folders: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["analyze", "decoder", folders["vit"], "--out", str(tmp_path / "out"), "--limit", "1"]) == 2
    assert "an encoder without a language model" in capsys.readouterr().err


@pytest.mark.slow
def test_every_study_of_a_model(folders: dict[str, str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(attention, "SHOWN", 1)
    every = settings.settings_for(ModelInfo("llava", 3, 4, True))
    few = [one for one in every if one.value in ("", "0.7", "0.2")]
    asked = ["analyze", "all", folders["llava"], "--out", str(tmp_path / "out"), "--limit", "2"]
    monkeypatch.setattr(ablations, "settings_for", lambda info: few)
    assert cli.main(asked) == 0
    shown = capsys.readouterr()
    made = next(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    page = (made / "index.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    for name in set(STUDIES) - {"rankings"}:  # which may be left out, for want of layers
        assert f'id="{name}"' in page and (made / f"{name}.md").is_file(), shown.err
        assert list(made.glob(f"{name}*.png")) and list(made.glob(f"{name}*.svg"))
    with (made / "redundancy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["removed"] for row in rows] == ["none"] + ["visual"] * 3 + ["text"] * 3
    with (made / "decoder.csv").open() as file:
        assert {row["run"] for row in csv.DictReader(file)} == {decoder.WHOLE, decoder.UNFUSED, decoder.FUSED}
    assert "Without" in shown.out and "visual tokens the accuracy changes" in shown.out


# ---------------------------------------------------------------- rankings


def test_ranks_and_the_layer_that_is_most_alike() -> None:
    reading = Reading(Grid(2, 2), Window(0, 0, 1, 1), np.array([[0.2, 0.3, 0.5, 0.1]]), None, np.ones((4, 1)))
    assert rankings.ranks_of(reading).tolist() == [[1 / 3, 2 / 3, 1.0, 0.0]]  # the paper's example, over n - 1
    correlation = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
    assert rankings.nearest(correlation).tolist() == [1, 0, 1]


def test_rankings_without_scikit_learn_are_one_sentence(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert cli.main(["analyze", "rankings", folders["vit"], "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "needs sklearn: pip install 'vlmprune[analyze]'" in error and error.count("\n") == 1


def test_rankings_in_a_plane(folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn.manifold")
    asked = ["analyze", "rankings", folders["vit"], "--limit", "2", "--out", str(tmp_path / "out")]
    assert cli.main(asked) == 0
    [file] = (tmp_path / "out").glob("*/rankings.csv")
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert len({(row["x"], row["y"]) for row in rows}) == len(rows) == LAYERS
    assert all(float(row[f"correlation_with_{row['layer']}"]) == 1 for row in rows)
    assert f"of {LAYERS} layers rank the tokens" in capsys.readouterr().out


# ---------------------------------------------------------------- ablations


def view_of(count: int, keep: int, **signals: torch.Tensor) -> ImageView:
    info = ModelInfo("llava", 4, 4, True)
    return ImageView(keep, torch.arange(count), Grid(count // 6, 6), info, signals)


def test_the_variant_of_hiprune_is_hiprune_but_for_what_is_asked() -> None:
    draw = torch.Generator().manual_seed(0)
    view = view_of(36, 12, object=torch.rand(36, generator=draw), deep=torch.rand(36, generator=draw))
    for alpha in (0.1, 0.5, 1.0):
        plain, variant = HiPrune(alpha=alpha), variants.HiPruneVariant(alpha=alpha)
        assert torch.equal(plain.select(view), variant.select(view))
        assert plain.needs(view.info) == variant.needs(view.info)
    needs = variants.HiPruneVariant(attention="cls").needs(view.info)
    assert needs == {"object": ClsAttention(Depth(9, 24)), "deep": ClsAttention(USED)}
    one = view_of(36, 12, object=torch.eye(36)[14], deep=torch.zeros(36))
    near = {
        count: sorted(variants.HiPruneVariant(alpha=(1 + count) / 12, neighbours=count).near(one))
        for count in (0, 2, 4, 8)
    }
    assert near[0] == [14] and near[2] == [13, 14, 15] and near[4] == [8, 13, 14, 15, 20]
    assert near[8] == [7, 8, 9, 13, 14, 15, 19, 20, 21]


def test_settings_change_one_option_each() -> None:
    every = settings.settings_for(ModelInfo("llava", 24, 32, True))
    layers = [int(one.value) for one in every if one.knob == "object layer"]
    assert layers[0] == 0 and layers[-1] == 23 and len(layers) == len(set(layers)) == 8
    assert {one.knob for one in every} >= {"attention", "token type", "neighbours", "alpha", "lambda", "tau"}
    assert not [one for one in settings.settings_for(ModelInfo("x", 9, 9, False)) if one.knob == "attention"]
    assert all(recipe(one.recipe) for one in every)


@pytest.mark.slow
def test_ablations_change_one_option_at_a_time(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = settings.settings_for(ModelInfo("llava", 24, 32, True))
    wanted = ("default", "neighbours", "tau")
    few = [one for one in every if one.knob in wanted and one.value in ("", "8 (square)", "0.2")]
    monkeypatch.setattr(ablations, "settings_for", lambda info: few)
    assert cli.main(["analyze", "ablations", folders["llava"], "--limit", "2", "--out", str(tmp_path / "out")]) == 0
    [file] = (tmp_path / "out").glob("*/ablations.csv")
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["method"], row["option"]) for row in rows] == [(one.method, one.knob) for one in few]
    assert all(float(row["low"]) <= float(row["change"]) <= float(row["high"]) for row in rows)
    assert "Of 1 changes" in capsys.readouterr().out
