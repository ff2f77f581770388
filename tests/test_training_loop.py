"""The training loop on a recipe of a few steps: it trains, continues after a kill, and exports a working folder."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from training import backend_llava, examples, tokenizer, train
from training.recipes import Stage
from training.start import load_start
from training.tokenizer import word_ids
from vlmprune.assets.questions import vocabulary

TINY = (
    Stage("warm-up", 2, 1e-3, 1e-3, dense=True),
    Stage("contrast", 3, 1e-3, 1e-3, contrastive=True, pairs=2),
    Stage(
        "all",
        3,
        1e-3,
        1e-3,
        mixes=((0, {"color": 2.0, "mcq": 1.0}),),
        hints=((0, 0.5),),
        feature_factor=0.5,
        cut_share=0.4,
        late_share=0.5,
    ),
)


def arguments(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(
        model="llava",
        device="cpu",
        seed=0,
        start=None,
        stage=None,
        layers=None,
        threads=1,
        no_compile=True,
        no_autocast=True,
        checkpoints=folder / "checkpoints",
        logs=folder / "logs",
        out=folder / "out",
    )


def weights(folder: Path) -> dict:
    return AutoModelForImageTextToText.from_pretrained(folder / "out" / "llava").state_dict()


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train.RECIPES, "llava", TINY)
    monkeypatch.setattr(train, "IMAGES_A_STEP", 2)
    monkeypatch.setattr(examples, "IMAGES_A_STEP", 2)
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    train.Trainer(arguments(tmp_path / "whole")).run()

    killed = train.Trainer(arguments(tmp_path / "killed"))
    step = killed.joint_step

    def die_at_the_last_step(stage: Stage) -> dict[str, float]:
        if killed.step == 2:
            raise KeyboardInterrupt
        return step(stage)

    monkeypatch.setattr(killed, "joint_step", die_at_the_last_step)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    train.Trainer(arguments(tmp_path / "killed")).run()

    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all((expected[name] == found[name]).all() for name in expected)
    lines = [json.loads(line) for line in (tmp_path / "killed" / "logs" / "llava.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if "event" in line] == ["start", "resumed", "exported"]
    steps = [(line["stage"], line["step"]) for line in lines if "step" in line and "event" not in line]
    assert steps == [
        ("warm-up", 1),
        ("warm-up", 2),
        *(("contrast", k) for k in (1, 2, 3)),
        *(("all", k) for k in (1, 2, 3)),
    ]


def test_a_run_goes_on_from_a_model_with_fewer_words_and_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New layers in front start as the identity, and old words keep their embedding."""
    monkeypatch.setattr(backend_llava, "DECODER_LAYERS", 6)
    backend = backend_llava.LlavaBackend()
    words = word_ids(backend)
    monkeypatch.setattr(tokenizer, "vocabulary", lambda: vocabulary()[:-5])
    fewer = word_ids(backend)
    old = backend.build(len(fewer))
    backend.export(old, tokenizer.build_tokenizer(backend, **backend.token_names), tmp_path)
    monkeypatch.setattr(backend_llava, "DECODER_LAYERS", 8)
    model = backend.build(len(words)).eval()
    load_start(model, tmp_path, words)
    ids = torch.tensor([[2, 5, 20, 30, 6]])
    with torch.no_grad():
        expected, found = old.eval()(input_ids=ids).logits, model(input_ids=ids).logits
    torch.testing.assert_close(found[..., : len(fewer)], expected, atol=2e-3, rtol=0)  # through float16


def test_a_run_goes_on_with_the_decoder_layers_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old layers first and new ones behind them say what the old model says; a wrong number of layers is told."""
    monkeypatch.setattr(backend_llava, "DECODER_LAYERS", 4)
    backend = backend_llava.LlavaBackend()
    words = word_ids(backend)
    old = backend.build(len(words))
    for layer in (0, 1):  # layers that add nothing, to be left out
        for part in (
            old.model.language_model.layers[layer].self_attn.o_proj,
            old.model.language_model.layers[layer].mlp.down_proj,
        ):
            part.weight.data.zero_()
    backend.export(old, tokenizer.build_tokenizer(backend, **backend.token_names), tmp_path)
    model = backend.build(len(words)).eval()
    load_start(model, tmp_path, words, train.origins("2,3,new,new"))
    ids = torch.tensor([[2, 5, 20, 30, 6]])
    with torch.no_grad():
        expected, found = old.eval()(input_ids=ids).logits, model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # through float16
    with pytest.raises(SystemExit, match="names 2 layers; the decoder has 4"):
        load_start(model, tmp_path, words, [0, 1])
