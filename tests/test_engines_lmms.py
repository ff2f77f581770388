"""vlmprune and lmms-eval, on local data: as its model, as an engine of the benchmark, and in the keys of its cache."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_folder import save_llava

from vlmprune import cli
from vlmprune.engines.lmms_bench import figures_of

TASK = """\
task: tiny_colors
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function tiny_utils.visual
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  max_new_tokens: 4
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
UTILS = "def visual(doc):\n    return [doc['image'].convert('RGB')]\n"
QUESTIONS = 6
needs_lmms = "lmms-eval is not installed: python3 tools/extras.py lmms runs this with it"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lmms_eval", reason=needs_lmms)
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for number in range(QUESTIONS):
        png = io.BytesIO()
        Image.new("RGB", (112, 112), ("red", "green", "blue")[number % 3]).save(png, "png")
        question = f"what color is the {('circle', 'square')[number % 2]} ?"
        rows.append({"image": {"bytes": png.getvalue(), "path": None}, "question": question, "answer": "red"})
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data.to_parquet(folder / "data.parquet")
    (folder / "tiny_colors.yaml").write_text(TASK.format(data=folder / "data.parquet"))
    (folder / "tiny_utils.py").write_text(UTILS)
    return folder


def scored(model: Any, tasks: Path, **more: Any) -> list[str]:
    """The replies of a model to the task, in the order of its documents."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = simple_evaluate(model=model, tasks=["tiny_colors"], task_manager=manager, bootstrap_iters=0, **more)
    samples = sorted(results["samples"]["tiny_colors"], key=lambda sample: sample["doc_id"])
    return [str(sample["filtered_resps"][0]) for sample in samples]


@pytest.mark.slow
def test_replies_are_those_of_generate(model: str, tasks: Path) -> None:
    """In batches, and each as the model says it when it is asked alone under the same method."""
    from datasets import load_dataset

    import vlmprune
    from vlmprune.bench.load import load_model
    from vlmprune.engines.lmms import PrunedModel

    replies = scored(PrunedModel(model, "fastv", 0.5, batch_size=4), tasks)
    loaded = load_model(model, "cpu")
    alone = []
    for row in load_dataset("parquet", data_files=str(tasks / "data.parquet"), split="train"):
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}]
        text = loaded.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        inputs = loaded.processor(text=text, images=row["image"], return_tensors="pt")
        with vlmprune.prune(loaded.model, "fastv", keep=0.5), torch.no_grad():
            ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=4)
        new = ids[0, inputs["input_ids"].shape[1] :]
        alone.append(loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert [reply.strip() for reply in replies] == alone and len(set(alone)) > 1


@pytest.mark.slow
def test_the_cache_tells_methods_apart(model: str, tasks: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from vlmprune.engines.lmms import PrunedModel

    asked: list[str] = []
    original = PrunedModel._replies
    monkeypatch.setattr(
        PrunedModel, "_replies", lambda self, batch: asked.extend([repr(self)] * len(batch)) or original(self, batch)
    )
    for method, keep in (("fastv", 0.5), ("fastv", 0.2), ("random", 0.5), (None, None)):
        calls = QUESTIONS
        for _ in range(2):
            asked.clear()
            replies = scored(PrunedModel(model, method, keep), tasks, use_cache=str(tmp_path))
            assert len(asked) == calls, (method, keep)
            calls = sum(not reply.strip() for reply in replies)  # lmms-eval never keeps an empty reply
        assert calls < QUESTIONS, (method, keep)  # else the second round would say nothing


@pytest.mark.slow
def test_as_an_engine(model: str, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--engine", "lmms", "--data", str(tasks), "--model", model]
    command += ["--methods", "fastv", "--keep", "0.5"]
    assert cli.main([*command, "--keep", "0.5", "--tasks", "tiny_colors", "--limit", "4"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[1] for row in rows[2:]] == ["vanilla", "random", "downsample", "fastv@2"]
    assert "tiny_colors exact_match" in rows[0]
    assert cli.main([*command, "--tasks", "tiny_colours"]) == 2
    assert "lmms-eval has no task 'tiny_colours'" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_model_by_name(model: str, tasks: Path, tmp_path: Path) -> None:
    """As a package that is installed names it, by its entry point."""
    found = tmp_path / "vlmprune-0.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: vlmprune-of-this-test\nVersion: 0\n")
    (found / "entry_points.txt").write_text("[lmms_eval.models]\nvlmprune = vlmprune.engines.lmms:manifest\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    for arguments, said, table in (
        (f"pretrained={model},method=fastv,keep=0.5", "tiny_colors", True),
        (f"pretrained={model},methode=fastv", "vlmprune has no argument 'methode'", False),
    ):
        command = [
            *(sys.executable, "-m", "lmms_eval", "--model", "vlmprune", "--model_args", arguments, "--limit", "2"),
            *("--tasks", "tiny_colors", "--include_path", str(tasks), "--batch_size", "2"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
        shown = done.stdout + done.stderr
        # lmms-eval itself ends with exit code 0 after an error: what tells is whether there is a table
        assert said in shown and ("exact_match" in done.stdout) == table, shown[-3000:]


def test_figures_leave_out_errors_and_words() -> None:
    results = {"pope": {"alias": "pope", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,none": "N/A", "samples": 3}}
    assert figures_of(results) == {("pope", "acc"): 0.5}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--engine", "lms"], "--engine lms is not there: give --engine lmms."),
        (["--engine", "lmms"], "--engine lmms needs tasks of lmms-eval: give them with --tasks."),
        (["--engine", "lmms", "--tasks", "pope", "--protocol", "lmms"], "--protocol is for our own loop"),
        (["--engine", "lmms", "--speed"], "--engine is not for timings"),
    ],
)
def test_wrong_arguments(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_without_lmms_eval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    assert cli.main(["bench", "--engine", "lmms", "--tasks", "pope"]) == 2
    assert "--engine lmms needs lmms_eval: pip install 'vlmprune[lmms]'" in capsys.readouterr().err
