"""The checks of adapters: every one fails on an adapter that is broken so, and those of vlmprune pass all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_pages import family_files
from torch import Tensor, nn

from vlmprune.bench import shapes
from vlmprune.cli import main
from vlmprune.core.errors import UserError
from vlmprune.core.view import TowerRows
from vlmprune.models import FAMILIES as ADAPTERS
from vlmprune.models.base import Slots
from vlmprune.models.gemma3 import Gemma3Adapter
from vlmprune.models.llava import LlavaAdapter
from vlmprune.models.qwen2_vl import Qwen2VLAdapter
from vlmprune.testing import ADAPTER_CHECKS, check_adapter, run_adapter_checks
from vlmprune.testing.adapters import Declared, declared_for
from vlmprune.testing.check import FAILED, PASSED, SKIPPED


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Shallow(LlavaAdapter):
    """The last encoder layer is missing."""

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return super().encoder_layers(modality)[:-1]


class Cautious(LlavaAdapter):
    """Says that there are no rows before the projector."""

    tower_rows = False


class Backwards(LlavaAdapter):
    """The last feature first."""

    def features(self, modality: str, call: dict[str, Any], pooled: Any) -> list[Tensor]:
        return [rows.flip(0) for rows in super().features(modality, call, pooled)]


class Mirrored(LlavaAdapter):
    """The first slot shows the last cell."""

    def slots(self, modality: str, call: dict[str, Any], counts: Any = None) -> list[Slots]:
        return [Slots(place.grid, place.cells.flip(0)) for place in super().slots(modality, call, counts)]


class Stretched(LlavaAdapter):
    """Counts positions in steps of two."""

    def rotary_at(self, layer: int, positions: Tensor, given: Any, given_positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotary_at(layer, 2 * positions, given, given_positions)


class Doubled(LlavaAdapter):
    """Projects to twice the features."""

    def project(self, rows: Tensor) -> Tensor:
        return 2 * super().project(rows)


class Upended(LlavaAdapter):
    """The attention of the last encoder layer for that of the first."""

    def encoder_attentions(self, modality: str = "image") -> Sequence[nn.Module]:
        return super().encoder_attentions(modality)[::-1]


class Normed(LlavaAdapter):
    """Another norm for the last."""

    @property
    def final_norm(self) -> nn.Module:
        return self.text_model.layers[0].input_layernorm


class Spoiling(LlavaAdapter):
    """Changes the user's pixels."""

    def slots(self, modality: str, call: dict[str, Any], counts: Any = None) -> list[Slots]:
        call["pixel_values"].mul_(1.5)
        return super().slots(modality, call, counts)


class Writing(Gemma3Adapter):
    """Takes what the model writes for tokens of an image, which see each other in both directions."""

    later_token_type = 1


class FirstOnly(LlavaAdapter):
    """The statistics of the first image for all of a batch."""

    def rows(self, modality: str, call: dict[str, Any], chunks: Any, counts: Any) -> list[TowerRows]:
        laid = super().rows(modality, call, chunks, counts)
        return [laid[0] for _ in laid]


class Joining(LlavaAdapter):
    """Takes all images of a prompt for one."""

    def images(self, ids: Tensor | None, columns: Sequence[Tensor]) -> list[int]:
        return [len(columns)]


class Square(Qwen2VLAdapter):
    """Has never seen a single row."""

    families = ("qwen2_vl",)

    def slots(self, modality: str, call: dict[str, Any], counts: Any = None) -> list[Slots]:
        found = super().slots(modality, call, counts)
        assert all(place.grid is not None and place.grid.rows > 1 for place in found), "no square"
        return found


class Single(LlavaAdapter):
    """Projects in single precision only."""

    def project(self, rows: Tensor) -> Tensor:
        return self.inner.multi_modal_projector(rows.float())  # type: ignore[no-any-return]


class Sound(LlavaAdapter):
    """Nothing is wrong with it."""


class Filming(Qwen2VLAdapter):
    families = ("qwen2_vl",)


BROKEN: dict[str, tuple[type[Any], str]] = {  # check -> adapter, tiny model
    "parts": (Shallow, "llava"),
    "declared": (Cautious, "llava"),
    "slots": (Backwards, "llava"),
    "grid": (Mirrored, "llava"),
    "positions": (Stretched, "llava"),
    "projector": (Doubled, "llava"),
    "encoder_signals": (Upended, "llava"),
    "decoder_signals": (Normed, "llava"),
    "several_images": (Joining, "llava"),
    "keep_all": (Spoiling, "llava"),
    "oracle_before": (Writing, "gemma3"),
    "oracle_inside": (Writing, "gemma3"),
    "batch": (FirstOnly, "llava"),
    "odd_shape": (Square, "qwen2_vl"),
    "half_precision": (Single, "llava"),
}
TOGETHER = {"oracle_before", "oracle_inside"}  # masks that are wrong for both


@pytest.mark.parametrize("name", BROKEN)
def test_a_check_fails_on_an_adapter_that_is_broken_so_and_no_other_does(name: str) -> None:
    cls, on = BROKEN[name]
    outcomes = list(run_adapter_checks(declared_for(cls), [on]))
    failed = {outcome.check for outcome in outcomes if outcome.status == FAILED}
    assert failed == (TOGETHER if name in TOGETHER else {name}), [str(one) for one in outcomes if one.status == FAILED]
    for outcome in outcomes:
        if outcome.check == name:
            assert "expected" in outcome.text and outcome.alone.endswith(f"--only {name} --on {on}")


def test_every_check_is_shown_to_fail() -> None:
    assert {*BROKEN, "video", "operations"} == set(ADAPTER_CHECKS)


def test_an_adapter_for_videos_without_a_tiny_video() -> None:
    images = {"qwen2_vl": declared_for(Filming).families["qwen2_vl"]}
    [outcome] = run_adapter_checks(Declared(Filming, images, "Filming", images), only=["video"])
    assert outcome.status == FAILED and "expected a tiny model with videos" in outcome.text
    [outcome] = run_adapter_checks(declared_for(Filming), ["qwen2_vl"], ["video"])
    assert outcome.status == SKIPPED and "'qwen2_vl video'" in outcome.text
    [outcome] = run_adapter_checks(declared_for(Filming), ["qwen2_vl video"], ["video"])
    assert outcome.status == PASSED


def test_operations_counted_by_other_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shapes.TOWERS["llava"]
    monkeypatch.setitem(shapes.TOWERS, "llava", lambda *given: {**whole(*given), "encoder_layers": 24})
    [outcome] = run_adapter_checks(declared_for(Sound), ["llava"], ["operations"])
    assert outcome.status == FAILED and outcome.text == (
        "expected encoder_layers=5, as the adapter says, but it is counted with 24"
    )


@pytest.mark.parametrize("family", ["llava", "smolvlm"])
def test_adapters_of_vlmprune_pass(family: str) -> None:
    assert {one.status for one in check_adapter(family, on=[family])} == {PASSED, SKIPPED}


@pytest.mark.slow
@pytest.mark.parametrize("family", ADAPTERS)
def test_every_adapter_of_vlmprune_passes(family: str) -> None:
    check_adapter(family)


def test_the_projector_and_the_signals_of_every_family_are_its_own() -> None:
    """Of PaliGemma, for one, the tower's last norm stands between its rows and the projector."""
    for family in ("paligemma", "video_llava"):
        check_adapter(family, only=["projector", "encoder_signals"])


def test_another_adapter_stands_in_only_while_it_is_checked() -> None:
    before = dict(ADAPTERS)
    with pytest.raises(AssertionError, match=r"1 checks of Backwards failed:\nslots on llava: expected the features"):
        check_adapter(Backwards, on=["llava"], only=["slots"])
    assert before == ADAPTERS


# ---------------------------------------------------------------- from the command line


def written(folder: Path, extra: str = "") -> Path:
    """The worked example of docs/adding-a-family.md in one file of a user's own."""
    (_, adapter), (_, tiny) = family_files().values()
    file = folder / "mine.py"
    file.write_text(f"{adapter}\n{tiny}\n{extra}")
    return file


def test_a_file_with_an_adapter_and_its_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path)
    assert main(["check", "--family", str(file)]) == 0
    said = capsys.readouterr().out
    assert "15 passed, 0 failed" in said and "operations" not in said  # which are counted for this family
    assert ADAPTERS["aya_vision"] == "vlmprune.models.aya_vision:AyaVisionAdapter"  # again
    assert main(["check", "--family", f"{file}:AyaVisionAdapter", "--only", "grid", "--json"]) == 0
    [outcome] = json.loads(capsys.readouterr().out)
    assert outcome["status"] == PASSED
    assert outcome["alone"].endswith("mine.py:AyaVisionAdapter --only grid --on aya_vision")


def test_a_file_whose_adapter_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "class Wide(AyaVisionAdapter):\n    families = ('aya_vision',)\n    patches_a_side = 3\n"
    file = written(tmp_path, wrong)
    assert main(["check", "--family", f"{file}:Wide", "--only", "slots"]) == 1
    assert "FAIL slots on aya_vision: expected" in capsys.readouterr().out
    assert main(["check", "--family", str(file)]) == 2
    assert "name the class: its adapters are AyaVisionAdapter, Wide" in capsys.readouterr().err


WRONG = {
    "nothing of that name": (["--family", "nothing"], "There is no family 'nothing'"),
    "neither": ([], "Give a method or a model to check, or an adapter"),
    "both": (["fastv", "--family", "llava"], "Give a method or a model to check, or an adapter"),
    "a method's check": (["--family", "llava", "--only", "budget"], "There is no check 'budget' of this kind"),
    "another tiny model": (["--family", "llava", "--on", "smolvlm"], "llava has no tiny model 'smolvlm'"),
    "a model": (["--family", "llava", "--model", "llava"], "vlmprune check llava"),
    "recorded cases": (["--family", "llava", "--goldens", "."], "leave out --goldens"),
    "no file": (["--family", "no.py"], "There is no file 'no.py' to take an adapter from"),
    "no folder": (["no/model"], "There is no folder 'no/model'"),
    "a model on tiny ones": (["llava", "--on", "llava"], "leave out --on"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = WRONG[name]
    assert main(["check", *arguments]) == 2
    said = capsys.readouterr()
    assert not said.out and sentence in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("FAMILIES = ['aya_vision']", "must be a dict of tiny models"),
        ("AyaVisionAdapter.families = ('mine',); FAMILIES = {}", "Nobody declares a tiny model of 'mine'"),
        ("from vlmprune.testing import FAMILIES", "is a 'cohere2_vision', but the adapter is for 'aya_vision'"),
        ("AyaVisionAdapter.families = ['aya_vision']", "write model types as"),
        ("del AyaVisionAdapter", "it holds no class derived from"),
        ("1 / 0", "ZeroDivisionError in line"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, extra: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        list(run_adapter_checks(str(written(tmp_path, extra))))
    assert "\n" not in str(error.value)


def test_a_tiny_model_that_cannot_be_built(tmp_path: Path) -> None:
    broken = "FAMILIES['aya_vision'].build = lambda attention: 1 / 0"
    with pytest.raises(UserError, match="'aya_vision' cannot be built as it is declared: ZeroDivisionError"):
        list(run_adapter_checks(str(written(tmp_path, broken))))
