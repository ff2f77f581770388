"""The command line: one sentence and exit code 2 for a mistake, 130 after Ctrl-C, the report at the end."""

from pathlib import Path

import pytest
from harness_cli import assert_one_sentence
from tiny_folder import save_llava

import vlmprune
from vlmprune import cli
from vlmprune.bench import plan
from vlmprune.bench.batch import Batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("bench --model lava", "did you mean 'llava'"),
        ("bench --model /nowhere/model", "There is no model"),
        ("bench --methods fastw", "did you mean 'fastv'"),
        ("bench --methods fastv(layers=3)", "fastv has no option 'layers'"),
        ("bench --methods ,", "names no method"),
        ("bench --tasks synth-pop", "did you mean 'synth-pope'"),
        ("bench --tasks ,", "names nothing"),
        ("bench --keep 0", "'0' is not a budget"),
        ("bench --keep 7.5", "'7.5' is not a budget"),
        ("bench --keep half", "'half' is not a budget"),
        ("bench --limit 0", "limit must be at least 1"),
        ("bench --limit many", "--limit"),
        ("bench --full --limit 3", "contradict"),
        ("bench --positions best", "is not a policy"),
        ("bench --frobnicate", "--frobnicate"),
        ("report /nowhere/results", "There is no result folder"),
        ("list colours", "choose one of methods, presets, models, tasks"),
        ("frobnicate", "frobnicate"),
        ("run", "picture"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(arguments.split(), sentence, tmp_path, capsys)


def test_an_output_that_cannot_be_written(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", "--model", folder, "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_result_folder_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "comparison.json").write_text("not json")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "comparison.json" in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["0.3", "7"])
def test_bench_ends_with_table_and_report(
    keep: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "--model", folder, "--methods", "fastv", "--keep", keep, "--tasks", "synth-pope"]
    assert cli.main([*command, "--limit", "4", "--batch-size", "4", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "downsample" in shown.out and "fastv@2" in shown.out and "Report:" in shown.out
    assert list(tmp_path.rglob("*.html"))
    assert cli.main(["report", str(tmp_path)]) == 0


def test_interrupt(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Batch, "run", stop)
    assert cli.main(["bench", "--model", folder, "--limit", "2", "--out", str(tmp_path)]) == 130
    err = capsys.readouterr().err
    assert "the same command continues" in err and err.count("\n") == 1


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    for what, names in {
        "methods": list(vlmprune.METHODS),
        "models": ["llava", "qwen2_5_vl"],
        "tasks": ["synth-mme", "synth-instruct"],
    }.items():
        assert cli.main(["list", what]) == 0
        lines = capsys.readouterr().out.splitlines()
        for name in names:
            assert any(line.startswith(name + " ") and len(line.split()) > 3 for line in lines)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlmprune {vlmprune.__version__}\n"
    assert cli.main(["bench", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    defaults = [*map(str, plan.KEEPS), str(plan.LIMIT), str(plan.FULL), str(plan.BATCH_SIZE)]
    assert "--keep" in shown and all(default in shown for default in defaults)
    assert len(plan.METHODS) == 8, "the help says eight"
