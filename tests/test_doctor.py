"""`vlmprune doctor`: what it says of a model is measured on that model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import save_family, save_llava
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_num2words_available

import vlmprune
from vlmprune import cli
from vlmprune.core.method import Scorer
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid, ImageView, Whole
from vlmprune.doctor import diagnose, examine, sample_picture
from vlmprune.doctor.anatomy import attention_backends, ranges
from vlmprune.doctor.layout import DROPPED, KEPT, NOTHING, Layout, describe_layout
from vlmprune.doctor.picture import COLORS, draw_layout
from vlmprune.doctor.proof import proof_recipes
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES, prompt
from vlmprune.testing.adapter_subject import layer_after_attention
from vlmprune.testing.families.qwen3_5 import PLAIN_TOWER, RECURRENT_TEXT
from vlmprune.testing.generic import USUAL
from vlmprune.testing.qwen import IDS
from vlmprune.testing.weights import TEXT, builder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("model"))


def difference(text: str) -> float:
    """The largest of all proofs."""
    found = re.findall(r"largest difference (\S+) \(at most", text)
    assert found
    return max(map(float, found))


# ---------------------------------------------------------------- whole reports


PROOFS = [
    "keep 1.0, one prompt, and a second turn",
    "keep 1.0, a batch with padding, and a second turn",
    *(
        f"{recipe}, {positions} positions, {asked}"
        for recipe in ("divprune:0.5", "fastv@2:0.5", "divprune:0.5 > fastv@2:0.5")
        for positions in ("original", "compact")
        for asked in ("one prompt", "a batch with padding", "a batch with padding, a second turn")
    ),
]


def test_report_of_a_folder(folder: Path) -> None:
    diagnosis = diagnose(str(folder))
    text = diagnosis.text
    assert "LlavaForConditionalGeneration (family llava, its own adapter), float32 on cpu" in text
    assert "sdpa in the language model, sdpa in the vision tower; this model can also use eager" in text
    assert "3 layers, the projector reads layer 1; with a CLS token" in text
    assert "4 decoder layers: full attention in all" in text
    assert "49 visual tokens" in text and "slot grid 7 x 7" in text
    drawing = [line for line in text.splitlines() if re.fullmatch(r"  [#.]( [#.]){6}", line)]
    assert len(drawing) == 7 and "".join(drawing).count("#") == 24
    for name in vlmprune.METHODS:
        assert re.search(rf"^  {re.escape(name)} +(works: 49 -> \d+ tokens|no: )", text, re.MULTILINE)
    proofs = text.partition("proof on this model")[2].splitlines()[1:]
    assert [line.partition(": ")[0].strip() for line in proofs] == PROOFS
    assert all("equals vanilla bit for bit" in line for line in proofs[:2])
    assert all("equals the masking oracle" in line for line in proofs[2:])
    assert difference(text) < 2e-4 and diagnosis.sound


def test_the_proof_can_fail(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With positions counted wrongly the difference to the oracle shows, in words and in the exit code."""
    original = vlmprune.prune

    def compact(model: torch.nn.Module, method: object, keep: object = None, **options: object) -> object:
        return original(model, method, keep, **{**options, "positions": "compact"})  # type: ignore[arg-type]

    monkeypatch.setattr(vlmprune, "prune", compact, raising=False)
    assert cli.main(["doctor", str(folder)]) == 1
    text = capsys.readouterr().out
    wrong = [line for line in text.splitlines() if "DIFFERS from the masking oracle" in line]
    assert len(wrong) == 9 and all("original positions" in line for line in wrong) and difference(text) > 2e-3
    assert "BREAKS: what it generates differs" in text  # methods whose authors keep original positions


@pytest.mark.slow
def test_embedded_models() -> None:
    for name in ("llava", "qwen2_5_vl"):
        diagnosis = diagnose(name)
        assert diagnosis.sound and "bit for bit" in diagnosis.text and difference(diagnosis.text) < 2e-4
        assert diagnosis.text.count("works: ") == len(vlmprune.METHODS)


FOLDERS = {
    "llava_next": ["5 blocks with a slot grid of 4 x 4", "tile 1 (base tile)", "6 image_newline slots that show no"],
    "qwen3_vl": ["slot grid 4 x 5", "vision tower of images and videos"],
    "qwen3_5": ["recurrent (no keys per token) in layers 0, 2; full attention in layers 1, 3", "the cutting oracle"],
    "llava_onevision": ["5 blocks with a slot grid of 5 x 5", "tile 1 (base tile)", "6 image_newline slots"],
    "video_llava": ["slot grid 4 x 4", "vision tower of images", "vision tower of videos"],
    "qwen2_vl": ["slot grid 4 x 5", "vision tower of images and videos"],
    "smolvlm": ["5 blocks with a slot grid of 3 x 3", "tile 5 (thumbnail)"],
    "internvl": ["5 blocks with a slot grid of 3 x 3", "tile 5 (thumbnail)"],
    "idefics3": ["5 blocks with a slot grid of 3 x 3", "tile 5 (thumbnail)"],
    "aya_vision": ["5 blocks with a slot grid of 3 x 3", "tile 5 (thumbnail)"],
    "ovis2": ["5 blocks with a slot grid of 3 x 3", "tile 1 (thumbnail)"],
    "gemma3": ["sliding window of 16 tokens in layers 0, 2", "tokens of an image see each other in both directions"],
    "paligemma": ["slot grid 6 x 6", "tokens of the prompt see each other in both directions"],
}


QUICK = ("qwen2_5_vl", "qwen3_5")  # the others among the slow tests


@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FOLDERS])
def test_folders_of_families(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # a package with which it words the count of frames
    diagnosis = diagnose(str(save_family(family, tmp_path)))
    for words in [*FOLDERS[family], f"family {family}, its own adapter"]:
        assert words in diagnosis.text
    assert diagnosis.sound and difference(diagnosis.text) < 2e-4
    assert "no proof" not in diagnosis.text and "a second turn" in diagnosis.text


@pytest.mark.usefixtures("unadapted")
def test_a_family_without_an_adapter() -> None:
    name = "aya_vision"
    diagnosis = examine(name, USUAL[name].build(), prompt(USUAL[name], [[0]]))
    assert "family aya_vision, the generic adapter" in diagnosis.text
    assert "9 slots, in no grid that vlmprune knows" in diagnosis.text
    assert re.search(r"hiprune, .*visionzip.* no: Methods that read the vision encoder cannot run", diagnosis.text)
    assert diagnosis.sound and difference(diagnosis.text) < 2e-4


def test_half_precision_is_not_judged_by_the_oracle() -> None:
    model, inputs = FAMILIES["llava"].build().bfloat16(), prompt(FAMILIES["llava"], [[0]])
    diagnosis = examine("half", model, {**inputs, "pixel_values": inputs["pixel_values"].bfloat16()})
    assert "bfloat16 on cpu" in diagnosis.text and "equals vanilla bit for bit" in diagnosis.text
    assert "tokens generated with a cache and not compared with a run without one: it needs float32" in diagnosis.text
    assert "not compared with an oracle: it needs float32" in diagnosis.text and diagnosis.sound


def test_a_backend_that_the_oracle_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = FAMILIES["llava"].build(), prompt(FAMILIES["llava"], [[0]])
    monkeypatch.setattr("vlmprune.doctor.reference.ORACLE_BACKENDS", ("eager",))
    diagnosis = examine("x", model, inputs)
    assert "it needs sdpa or eager attention to mask columns, and sdpa is on" in diagnosis.text
    assert "  fastv        works: " in diagnosis.text and diagnosis.sound  # by a forward without a cache


class Broken(Scorer):
    name: ClassVar[str] = "broken"
    stage: ClassVar[str] = "vision"

    def score(self, view: ImageView) -> torch.Tensor:
        raise ZeroDivisionError("oh\nno")


def test_a_method_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vlmprune.METHODS._targets, "broken", "test_doctor:Broken")
    model, inputs = FAMILIES["llava"].build(), prompt(FAMILIES["llava"], [[0]])
    diagnosis = examine("x", model, inputs)
    assert "  broken       BREAKS: ZeroDivisionError: oh\n" in diagnosis.text and not diagnosis.sound


# ---------------------------------------------------------------- parts


def test_the_proof_suits_the_model() -> None:
    adapter = adapter_for(FAMILIES["qwen3_5"].build())
    assert proof_recipes(adapter) == ["divprune:0.5", "fastv@2:0.5", "divprune:0.5 > fastv@2:0.5"]
    adapter.text_config.layer_types = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    assert layer_after_attention(adapter) is None and proof_recipes(adapter) == ["divprune:0.5"]
    adapter.text_config.layer_types = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    assert proof_recipes(adapter)[-1] == "divprune:0.5 > fastv@3:0.5"


def test_a_method_gets_a_layer_that_it_can_read() -> None:
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    build = builder("Qwen3_5", PLAIN_TOWER, {**RECURRENT_TEXT, "layer_types": kinds}, **IDS)
    diagnosis = examine("x", build(), prompt(FAMILIES["qwen3_5"], [[0]]))
    assert re.search(r"^  fastv@1 +works: 24 -> 12 tokens", diagnosis.text, re.MULTILINE)
    assert re.search(
        r"^  .*fastv.* no: Decoder layer 1 of this model has no attention map", diagnosis.text, re.MULTILINE
    )
    assert (
        "fastv@1:0.5, compact positions, a batch with padding: equals the cutting oracle" in diagnosis.text
        and diagnosis.sound
    )


def test_words() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8" and ranges([3]) == "3"
    usable, missing = attention_backends(FAMILIES["llava"].build())
    assert {"eager", "sdpa"} <= set(usable) and not set(usable) & set(missing)


def layout(cells: list[int], kept: list[int], grid: Grid | None, *wholes: Whole, part: str = "tile") -> Layout:
    """Of one image behind two tokens of text."""
    adapter: Any = adapter_for(FAMILIES["llava_next"].build())
    report = RunReport(kept=[[torch.tensor(kept)]], grids=[[grid]], cells=[[torch.tensor(cells)]], wholes=[[wholes]])
    ids = torch.tensor([[1, 2, *[adapter.placeholder_ids["image"]] * len(cells)]])
    return Layout.of(adapter, {"input_ids": ids}, report, part)


def test_tiles_side_by_side_and_slots_without_a_patch() -> None:
    base = Whole("base tile", Grid(2, 2), torch.tensor([0, 1, 2, 3, -1, -1, -1]))
    shown = layout([0, 1, 2, 3, 4, 6, -1], [0, 3, 4, 6], Grid(2, 2, 2), base)
    assert shown.kept == 4 and sum(image.count for image in shown.images) == 7
    assert [block.title for block in shown.images[0].blocks] == ["tile 1 (base tile)", "tile 2"]
    assert [block.marks.tolist() for block in shown.images[0].blocks] == [
        [[KEPT, DROPPED], [DROPPED, KEPT]],
        [[KEPT, NOTHING], [DROPPED, NOTHING]],
    ]
    lines = describe_layout(shown, "random:0.5")
    assert lines[0].startswith("a sample picture: 7 visual tokens of 9 in the prompt, columns 2 to 8")
    assert "a blank is a place without a slot" in lines[1]
    assert [line.split() for line in lines[3:5]] == [["#", ".", "#"], [".", "#", "."]]
    assert lines[5:] == ["1 image_newline slots that show no patch:", "  #"]


def test_a_video_s_frames() -> None:
    shown = layout(list(range(8)), [1, 7], Grid(2, 2, 2), part="frame")
    assert [block.title for block in shown.images[0].blocks] == ["frame 1", "frame 2"]


def test_slots_that_share_a_cell() -> None:
    shown = layout([0, 1, 1, 2], [2, 3], Grid(2, 2, 1))
    assert shown.images[0].doubled == 1 and shown.images[0].count == 4
    lines = describe_layout(shown, "random:0.5")
    assert (
        lines[2:4] == ["  . #", "  #"]
        and "slots that show a cell already drawn" in lines[4]
        and lines[4].endswith(": 1")
    )


def test_wide_grids_are_drawn_without_spaces() -> None:
    shown = layout(list(range(120)), [0], Grid(2, 60))
    assert describe_layout(shown, "x")[2:] == ["  #" + "." * 59, "  " + "." * 60]
    many = layout(list(range(40)), [0], None)
    assert len(describe_layout(many, "x")) == 4 and many.images[0].count == 40


def test_the_picture_shows_every_slot() -> None:
    base = Whole("base tile", Grid(2, 2), torch.tensor([0, 1, 2, 3, -1, -1, -1]))
    shown = layout([0, 1, 2, 3, 4, 6, -1], [0, 3, 4, 6], Grid(2, 2, 2), base)
    page = draw_layout(shown, sample_picture(), "A model", "random:0.5")
    again = draw_layout(shown, sample_picture(), "A model", "random:0.5")
    assert page.tobytes() == again.tobytes()
    pixels = np.asarray(page)
    area = {color: int((pixels == color).all(-1).sum()) for marks in COLORS.values() for color in marks.values()}
    square, key = 20 * 20, 14 * 14  # of a slot, of the legend
    counts = {color: (pixels - key) / square for color, pixels in area.items()}
    assert counts == {
        COLORS[False][KEPT]: 3,
        COLORS[False][DROPPED]: 3,
        COLORS[True][KEPT]: 1,
        COLORS[True][DROPPED]: 0,
    }
    disc = (pixels == (230, 60, 40)).all(-1)
    assert disc.any() and disc.nonzero()[1].max() < page.width // 2, "the sample picture is on the left"
    plain = draw_layout(layout([0, 1], [0], None), None, "A model", "random:0.5")
    assert plain.width < page.width and not (np.asarray(plain) == COLORS[True][KEPT]).all(-1).any()


def test_picture_of_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "layout.png"
    assert cli.main(["doctor", str(folder), "--picture", str(target)]) == 0
    assert f"The layout is drawn in {target}." in capsys.readouterr().out
    with Image.open(target) as page:
        assert page.width > 500


# ---------------------------------------------------------------- mistakes


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and not shown.out
    return shown.err


def test_mistakes_are_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "did you mean 'llava'" in complaint(["doctor", "llavb"], capsys)
    assert "holds no model" in complaint(["doctor", str(tmp_path)], capsys)
    text = tmp_path / "text"
    LlamaForCausalLM(LlamaConfig(**TEXT)).save_pretrained(text)
    assert "as a vision-language model" in complaint(["doctor", str(text)], capsys)
    bare = tmp_path / "bare"
    FAMILIES["llava"].build().save_pretrained(bare)
    assert "No processor could be loaded" in complaint(["doctor", str(bare)], capsys)
    for file, content, said in (
        ("tokenizer.json", "{}", "No processor could be loaded"),
        ("config.json", "{not json", "not a valid JSON file"),
        ("model.safetensors", "no weights", "is broken (Error while deserializing header"),
    ):
        broken = shutil.copytree(folder, tmp_path / f"broken {file}")
        (broken / file).write_text(content)
        assert said in complaint(["doctor", str(broken)], capsys)
    misfit = shutil.copytree(folder, tmp_path / "misfit")
    config = (misfit / "config.json").read_text()
    (misfit / "config.json").write_text(config.replace('"intermediate_size": 48', '"intermediate_size": 56'))
    assert "do not fit its config.json" in complaint(["doctor", str(misfit)], capsys)
    for name in ("layout.txt", "nowhere/layout.png"):
        assert "The picture" in complaint(["doctor", str(folder), "--picture", str(tmp_path / name)], capsys)


@pytest.mark.skipif(is_num2words_available(), reason="the package is there")
def test_a_processor_that_needs_another_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "num2words" in complaint(["doctor", str(save_family("smolvlm", tmp_path))], capsys)
