"""Timing: the figures are there and add up; how large they are is never asserted."""

import sys
from pathlib import Path

import pytest
import torch
from tiny_folder import save_llava

from vlmprune.bench.load import Loaded, load_model
from vlmprune.bench.protocol import PLAIN, Asker
from vlmprune.bench.shapes import shape_of
from vlmprune.bench.timing import measure
from vlmprune.core.recipe import recipe
from vlmprune.tasks import generated_tasks
from vlmprune.testing import FAMILIES

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import speed

NEW = 4


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_model(str(save_llava(tmp_path_factory.mktemp("model"))), "cpu")


def test_figures(loaded: Loaded) -> None:
    task = generated_tasks()["synth-ocr"]
    inputs = Asker(PLAIN, task, loaded.processor, loaded.model.config.model_type).inputs([next(task.samples())])
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    recipes = [None, recipe("random:5"), recipe("fastv@2:5"), recipe("downsample:5")]
    vanilla, early, late, small = measure(loaded.model, inputs, recipes, new_tokens=NEW, repeats=2, warmup=1)
    prompt, layers, row = inputs["input_ids"].shape[1], 4, 2 * 16 * 4  # keys and values of two heads of 8, float32
    assert vanilla.kv_bytes == layers * (prompt + NEW - 1) * row
    assert early.kv_bytes == vanilla.kv_bytes - layers * 44 * row
    assert late.kv_bytes == vanilla.kv_bytes - (layers - 2) * 44 * row
    assert vanilla.tokens is None and early.tokens == (49, 5) and small.tokens is not None
    for timing in (vanilla, early, late, small):
        assert 0 < timing.vision.low <= timing.vision.median <= timing.vision.high < timing.total.high
        assert timing.peak_bytes > 0 and timing.decode.low > 0
        assert (timing.method.median > 0) == (timing is not vanilla)
        assert timing.speedup(vanilla).low > 0
    assert vanilla.speedup(vanilla) == (1, 1, 1)
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    assert not loaded.model.get_encoder(modality="image")._forward_hooks


def test_the_script(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    options = ["--methods", "random", "--keep", "5", "--new-tokens", "2", "--repeats", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["speed.py", "--model", loaded.name, *options])
    monkeypatch.setenv("COLUMNS", "200")
    speed.main()
    assert "random:5" in capsys.readouterr().out and '"kv_bytes"' in out.read_text()
    monkeypatch.setattr("sys.argv", ["speed.py", "--methods", "fastw"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "did you mean 'fastv'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_geometry_with_random_weights(name: str) -> None:
    model, inputs = speed.random_model(FAMILIES[name].build().config, 3, 2, "cpu")
    assert len(model.get_decoder().layers) == 3
    vanilla, pruned = measure(model, inputs, [None, recipe("fastv@2:0.5")], new_tokens=2, repeats=1, warmup=0)
    assert pruned.kv_bytes < vanilla.kv_bytes


def test_geometries() -> None:
    shapes = {name: shape_of(speed.geometry(name)) for name in speed.RANDOM}
    llava, qwen = shapes.values()
    assert llava is not None and (llava.width, llava.layers, llava.encoder_layers) == (4096, 32, 24)
    assert qwen is not None and (qwen.width, qwen.layers, qwen.kv_width, qwen.full_layers) == (3584, 28, 512, 4)
