"""The training loop on a recipe of a few steps: it trains, continues after a kill, and exports a working folder."""

import argparse
import json
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from training import train
from training.recipes import Stage

TINY = (
    Stage("warm-up", 2, 1e-3, 1e-3, dense=True),
    Stage("all", 3, 1e-3, 1e-3, mixes=((0, {"color": 2.0, "mcq": 1.0}),), hints=((0, 0.5),), feature_factor=0.5),
)


def arguments(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(
        model="llava",
        device="cpu",
        seed=0,
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
    assert [line["step"] for line in lines if "answers" in line] == [1, 2, 1, 2, 3]
