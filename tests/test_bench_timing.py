"""Timing: the figures are there and add up; how large they are is never asserted."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch
from tiny_folder import save_llava

from vlmprune import cli
from vlmprune.bench import speed
from vlmprune.bench.load import Loaded, load_model
from vlmprune.bench.protocol import PLAIN, Asker
from vlmprune.bench.random_inputs import random_inputs, usual_visual
from vlmprune.bench.random_models import Architecture, architectures, random_model
from vlmprune.bench.shapes import shape_of
from vlmprune.bench.speed import run_speed
from vlmprune.bench.speed_pays import pays_from
from vlmprune.bench.speed_plan import SpeedPlan, planned, presets, speed_preset
from vlmprune.bench.speed_report import sheets, speed_texts
from vlmprune.bench.speed_store import load_points
from vlmprune.bench.speed_table import Spread
from vlmprune.bench.timing import Clock, generate, peak_bytes
from vlmprune.bench.turns import Turn
from vlmprune.core.errors import UserError
from vlmprune.core.recipe import recipe
from vlmprune.report import build
from vlmprune.tasks import generated_tasks

NEW = 4
SMALL = "qwen3-vl-8b:layers=3,encoder_layers=2,shrink=32"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_model(str(save_llava(tmp_path_factory.mktemp("model"))), "cpu")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder: two sizes, two batches, two lengths."""
    out = tmp_path_factory.mktemp("speed") / "out"
    run_speed(plan(), out)
    return out


def plan(**options: object) -> SpeedPlan:
    small = {"architecture": SMALL, "methods": ("divprune", "fastv@1"), "keeps": (0.25,), "visual": (16, 36)}
    return SpeedPlan(**{**small, "batches": (1, 2), "new_tokens": (1, 3), "repeats": 2, "warmup": 0, **options})  # type: ignore[arg-type]


def test_phases_and_bytes_of_a_generation(loaded: Loaded) -> None:
    task = generated_tasks()["synth-ocr"]
    inputs = Asker(PLAIN, task, loaded.processor, loaded.model.config.model_type).inputs([next(task.samples())])
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    prompt, layers, row = inputs["input_ids"].shape[1], 4, 2 * 16 * 4  # keys and values of two heads of 8, float32
    expected = {None: (49, 49, 0), "random:5": (49, 5, layers), "fastv@2:5": (49, 5, layers - 2)}
    for text, (whole, kept, cut) in expected.items():
        turn, counts = generate(loaded.model, inputs, text and recipe(text), NEW)
        assert (counts.before, counts.after, counts.encoded) == (whole, kept, 49)
        assert counts.kv_bytes == (layers * (prompt + NEW - 1) - cut * 44) * row
        assert counts.passes == (49,) and len(turn.ticks) == NEW and sorted(turn.ticks) == list(turn.ticks)
        assert (turn.method > 0) == (text is not None) and turn.vision > 0 and turn.prefill > 0
        phases = turn.vision + turn.method + turn.prefill + (NEW - 1) * turn.decode(NEW)
        assert phases == pytest.approx(turn.total(NEW)) and turn.decode(1) is None and turn.total(1) == turn.first
    turn, counts = generate(loaded.model, inputs, recipe("downsample:5"), NEW)
    assert counts.before == 49 and counts.after == counts.encoded < 6 and counts.passes == (counts.encoded,)
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    tower = loaded.model.get_encoder(modality="image")
    assert not tower._forward_hooks and not tower._forward_pre_hooks
    assert peak_bytes(loaded.model.device, lambda: torch.ones(1 << 20)) >= 4 << 20


def test_marks_of_a_gpu_are_events_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            assert stream == "stream"

        def elapsed_time(self, end: object) -> float:
            return 2500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    clock = Clock(torch.device("cuda"))
    start, end = clock.mark(), clock.mark()
    assert not waits and clock.seconds(start, end) == 2.5
    clock.wait()
    assert waits == [clock.device]


@pytest.mark.parametrize("name", architectures())
def test_architectures(name: str) -> None:
    """The whole one has a public checkpoint's shape; a small one makes as many visual tokens, and runs."""
    known = {
        "llava-1.5-7b": (4096, 32, 24, 4096), "llava-next-7b": (4096, 32, 24, 4096),
        "qwen2.5-vl-7b": (3584, 28, 32, 512), "qwen3-vl-8b": (4096, 36, 27, 1024), "internvl3-8b": (3584, 28, 24, 512),
    }  # fmt: skip
    shape = shape_of(Architecture.parse(name).config())
    assert shape is not None
    assert (shape.width, shape.layers, shape.encoder_layers, shape.kv_width) == known[name]
    small = Architecture.parse(f"{name}:layers=2,encoder_layers=2,shrink=32")
    assert str(small) == f"{name}:layers=2,encoder_layers=2,shrink=32"
    model = random_model(small, "cpu")
    visual = {"llava-1.5-7b": 1152, "llava-next-7b": 576 + 24 * 49, "internvl3-8b": 512}.get(name, 36)
    turn, counts = generate(model, random_inputs(model, visual, 2), recipe("fastv@1:0.5"), 2)
    assert counts.before == visual and counts.after == visual // 2 and len(turn.ticks) == 2
    assert usual_visual(model) in (256, 576, 2928)
    if name != "qwen3-vl-8b" and name != "qwen2.5-vl-7b":
        with pytest.raises(UserError, match="give"):
            random_inputs(model, 100, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("qwen", "choose internvl3-8b"),
        ("qwen3-vl-8b:depth=2", "layers, encoder_layers or shrink"),
        ("qwen3-vl-8b:layers=x", "whole number"),
        ("qwen3-vl-8b:layers=99", "has 36 layers"),
    ],
)
def test_an_architecture_that_is_not_one(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Architecture.parse(text)


def test_a_number_of_tokens_that_makes_no_square() -> None:
    model = random_model(Architecture.parse(SMALL), "cpu")
    with pytest.raises(UserError, match="give 100 or 110"):
        random_inputs(model, 101, 1)


def test_points(measured: Path) -> None:
    points = load_points(measured)
    assert [(p.point.visual, p.point.batch) for p in points] == [(16, 1), (16, 2), (36, 1), (36, 2)]
    for result in points:
        assert result.lengths == (1, 3) and result.turns == 2 and result.point.text == 40
        assert result.point.recipes == ("vanilla", "divprune:0.25", "fastv@1:0.25")
        vanilla, early, inside = (result.variants[name] for name in result.point.recipes)
        whole, kept, layers = result.point.visual, result.point.visual // 4, 3
        row = 2 * 128 * 4 * result.point.batch  # keys and values of one head of 128, float32
        for own, tokens in ((vanilla, layers * whole), (early, layers * kept), (inside, whole + 2 * kept)):
            assert own.counts is not None and own.flops is not None and own.peak_bytes > 0
            assert own.counts.kv_bytes == (tokens + layers * (40 + 3 - 1)) * row
            assert own.counts.passes == (4 * whole,) * result.point.batch
        assert vanilla.flops.total > inside.flops.total > early.flops.total  # type: ignore[union-attr]


def test_the_same_command_measures_nothing_again(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in measured.glob("speed/*/*.json")}
    monkeypatch.setattr(speed, "generate", None)  # would fail if it were called
    run_speed(plan(), measured)
    assert before == {path: path.read_bytes() for path in measured.glob("speed/*/*.json")} and len(before) == 4


def test_an_interruption_keeps_complete_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [0], speed.generate

    def interrupted(*args: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == 9:  # three for memory and three of the first turn; in the middle of the second
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    few = plan(visual=(16,), batches=(1,))
    monkeypatch.setattr(speed, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_speed(few, tmp_path / "out")
    [kept] = load_points(tmp_path / "out")
    first = [own.turns[0] for own in kept.variants.values()]
    assert kept.turns == 1
    [whole] = run_speed(few, tmp_path / "out")
    assert whole.turns == 2 and [own.turns[0] for own in whole.variants.values()] == first


def test_tables(measured: Path) -> None:
    """One a point and length, and the break-even; the same results give the same bytes."""
    tables = sheets(load_points(measured))
    assert len(tables) == 4 * 2 + 1
    assert all(len(line) == len(table.head) for table in tables for line in table.lines)
    assert list(tables[-1].head[1:]) == ["batch 1, 1 new", "batch 1, 3 new", "batch 2, 1 new", "batch 2, 3 new"]
    assert [line[0] for line in tables[-1].lines] == ["divprune:0.25", "fastv@1:0.25"]
    texts = speed_texts(measured)
    assert texts == speed_texts(measured) and len(texts["speed.csv"].splitlines()) == 1 + 4 * 3 * 2 * 2
    assert [path.name for path in build(measured)] == ["speed.md", "speed.csv"]
    broken = next(measured.glob("speed/*/*.json"))
    text = broken.read_text()
    broken.write_text("{}")
    with pytest.raises(UserError, match="delete it"):
        load_points(measured)
    broken.write_text(text)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ({64: (0.8, 0.7, 0.9), 256: (1.2, 1.1, 1.3), 1024: (2, 2, 2)}, "256"),
        ({64: (0.8, 0.7, 0.9), 256: (1.2, 0.9, 1.3), 1024: (2, 2, 2)}, "~256"),
        ({64: (1.1, 1.05, 1.2), 256: (1.2, 1.1, 1.3)}, "<= 64"),
        ({64: (1.1, 1.05, 1.2), 256: (0.9, 0.8, 1.3)}, "never (to 256)"),
        ({64: (1.1, 1, 1), 256: (0.9, 1, 1), 1024: (1.1, 1.05, 2)}, "1024"),
        ({}, "–"),
    ],
)
def test_from_where_on_it_pays(ratios: dict[int, tuple[float, float, float]], words: str) -> None:
    assert pays_from({size: Spread(*ratio) for size, ratio in ratios.items()}) == words


@pytest.mark.parametrize("name", presets())
def test_presets(name: str, tmp_path: Path) -> None:
    """Each printed row is of a recipe and size that the preset measures, and stands beside ours."""
    preset = speed_preset(name)
    preset.plan.check()
    recipes = [variant.text for variant in preset.plan.variants()]
    assert {(row["recipe"], row["visual"]) for row in preset.printed} == {
        (text, visual) for text in recipes for visual in preset.plan.visual
    }
    if name != "hilo-table8":
        return
    small = planned(name, {"architecture": SMALL, "visual": (256,), "new_tokens": (2,), "repeats": 1})
    results = run_speed(small, tmp_path / "out", preset=name)
    table = sheets(results)[-1]
    rows = {(line[0], line[1], line[2]): line for line in table.lines}
    line = rows["256", "hilo:0.1" if "hilo:0.1" in recipes else "hilo@2:0.1", "ms in all"]
    ours = median(turn.total(2) for turn in results[0].variants[line[1]].turns)
    assert line[3] == "609.5" and line[4] == f"{1e3 * ours:.1f}" and line[5] == "1.00"
    assert rows["4096", line[1], "ms in all"][4] == "–"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--random", "qwen3-vl-8b"], "--speed"),
        (["--batch-size", "1,8"], "--speed"),
        (["--speed", "--tasks", "synth-ocr"], "--tasks is not for timings"),
        (["--speed", "--replicas", "2"], "--replicas is not for timings"),
        (["--speed", "--judge-model", "m"], "--judge-model is not for timings"),
        (["--speed", "--random", SMALL, "--model", "llava"], "contradict"),
        (["--speed", "--visual-tokens", "64"], "--random"),
        (["--speed", "--random", SMALL, "--new-tokens", "0"], "at least 1"),
        (["--speed", "--random", SMALL, "--batch-size", "two"], "whole numbers"),
        (["--speed", "--random", SMALL, "--repeats", "0"], "at least 1"),
        (["--speed", "--random", SMALL, "--methods", "fastw"], "did you mean 'fastv'"),
        (["--speed", "--random", SMALL, "--dtype", "int3"], "choose float32"),
        (["--speed", "--random", SMALL, "--device", "mars"], "--device mars is not a device"),
        (["--speed", "--preset", "table9"], "choose hilo-table8"),
        (["--speed", "--preset", "hilo-table8", "--model", "llava"], "architecture of its own"),
        (["--speed", "--preset", "hilo-table8", "--methods", "divprune"], "has no budget"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (tmp_path / "out" / "speed").exists()


def test_the_command(loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--methods", "random", "--keep", "5", "--new-tokens", "2", "--repeats", "1", "--batch-size", "2"]
    out = tmp_path / "out"
    assert cli.main(["bench", "--speed", "--model", loaded.name, *options, "--device", "cpu", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "random:5" in said and "49 > 5" in said and "batch 2" in said
    assert cli.main(["report", str(out)]) == 0
    assert "random:5" in (out / "report" / "speed.md").read_text()


def test_energy_is_of_the_whole_generation() -> None:
    assert Turn(1.0, 0.5, (2.0, 3.0), joules=7.0).prefill == 0.5
    readings = iter([10.0, 17.5])
    model = random_model(Architecture.parse(SMALL), "cpu")
    turn, _ = generate(model, random_inputs(model, 16, 1), None, 1, joules=lambda: next(readings))
    assert turn.joules == 7.5
