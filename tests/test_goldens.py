"""The library against what the authors' own code returned, and the checker against itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import check_goldens
import numpy as np
import pytest
import torch
from golden_runners import RUNNERS, Case, Failed, Runner, Skipped, adaptive, runner_of, spatial
from golden_runners.case import find, run, view

from vlmprune.methods.cluster import cluster_merge
from vlmprune.methods.decoder.mustdrop import MustDrop
from vlmprune.methods.vision.gprune import GPrune

TESTS = Path(__file__).parent
GOLDENS = TESTS / "goldens"
PATHS = find(GOLDENS)
COVERED = [path for path in PATHS if runner_of(Case(path)) is not None]

# Arrays that are results, of those whose names do not say so.
RESULT = re.compile(
    r"permutation|position_ids(_after_|_full)?\d*|(positions_|n_)?after_\d+|cache_rows_\d+|deleted_\w+|keep_mask_all|image_pivots|text_pivots|pivot_order|softmax_scores|scores"
    r"|scores\d+_expected|n_after_layer|counts|sliced_positions|segment_sizes|relation|keep_mask|merged|kl_mean|out|\w+_out|out_metric|score_base|score_hires|size|group|dominant\w*|attention_mask_out\d+|hidden_out_\d+|final_hidden"
)


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def one_of_each_kind() -> list[Path]:
    """The smallest case of each kind: enough to show that its runner would notice a difference."""
    smallest: dict[tuple[str, str], Path] = {}
    for path in sorted(COVERED, key=lambda path: path.with_suffix(".npz").stat().st_size):
        case = Case(path)
        smallest.setdefault((case.method, f"{case.get('kind')} {case.get('dtype')} {case.get('data')}"), path)
    return sorted(smallest.values())


@pytest.mark.parametrize("path", COVERED, ids=name_of)
def test_the_library_returns_what_the_authors_code_returned(path: Path) -> None:
    case = Case(path)
    runner = runner_of(case)
    assert runner is not None
    run(case, runner)


@pytest.mark.parametrize("path", one_of_each_kind(), ids=name_of)
def test_a_change_anywhere_in_what_is_expected_fails(path: Path) -> None:
    case = Case(path)
    runner = runner_of(case)
    assert runner is not None
    run(case, runner)
    half = case.get("dtype") in ("float16", "bfloat16")
    for name in sorted(case.compared):
        changed = Case(path)
        flat = changed.arrays[name].copy().reshape(-1)
        if not flat.size:
            continue
        places = slice(None) if half else slice(flat.size // 2, flat.size // 2 + 1)
        if flat.dtype.kind == "b":
            flat[places] ^= True
        else:
            flat[places] += 1 if flat.dtype.kind == "i" else (3e-2 if half else 1e-3) * (1 + abs(flat[places]))
        changed.arrays[name] = flat.reshape(changed.arrays[name].shape)
        with pytest.raises(Failed, match=name):
            run(changed, runner)


@pytest.mark.parametrize("path", one_of_each_kind(), ids=name_of)
def test_whatever_looks_expected_is_compared_and_nothing_else_is(path: Path) -> None:
    case = Case(path)
    runner = runner_of(case)
    assert runner is not None
    run(case, runner)
    looks_expected = {name for name in case.arrays if "kept" in name or name.startswith("expected_")}
    assert looks_expected <= case.compared
    assert all(RESULT.fullmatch(name) for name in case.compared - looks_expected)


def test_every_method_ships_at_least_two_cases_within_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in GOLDENS.rglob("*") if path.is_file()) <= 6_000_000
    for folder in {path.parent for path in PATHS}:
        assert len([path for path in PATHS if path.parent == folder]) >= 2, folder.name
    assert set(RUNNERS) <= {path.parent.name for path in PATHS}


def copy(source: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".npz", ".json"):
        shutil.copyfile((GOLDENS / source).with_suffix(suffix), target.with_suffix(suffix))
    return target.with_suffix(".json")


def test_the_checker_counts_what_passed_and_lists_the_rest_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy("fastv/case4", tmp_path / "fastv/case4")
    copy("fastv/case6", tmp_path / "fastv/case123")
    copy("vtw/case2", tmp_path / "newmethod/case2")
    copy("unibench_tiles/case2", tmp_path / "unibench_tiles/case2")
    meta = tmp_path / "unibench_tiles/case2.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "method": "new_pre_llm"}))
    assert check_goldens.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 passed, 0 failed"
    assert lines[-2] == "no runner: newmethod (1), unibench_tiles/new_pre_llm (1)"


def test_the_checker_says_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy("fastv/case4", tmp_path / "fastv/case0")
    meta = copy("fastv/case4", tmp_path / "fastv/case1")
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "hf_keep": 5}))
    with np.load(meta.with_suffix(".npz")) as arrays:
        more = {**arrays, "expected_new": np.zeros(3)}
    np.savez(copy("fastv/case4", tmp_path / "fastv/case2").with_suffix(".npz"), **more)
    copy("fastv/case4", tmp_path / "fastv/case3").with_suffix(".npz").unlink()
    copy("fastv/case4", tmp_path / "fastv/case5").unlink()
    copy("fastv/case4", tmp_path / "fastv/case7").with_suffix(".npz").write_bytes(b"PK no archive")
    copy("fastv/case4", tmp_path / "fastv/case8").write_text("[")
    bare = copy("fastv/case4", tmp_path / "fastv/case9").with_suffix(".npz")
    np.savez(bare, **{name: array for name, array in more.items() if name not in ("hidden", "expected_new")})
    meta = copy("hiprune/case4", tmp_path / "hiprune/case4")
    text = meta.read_text().replace("llava_scores", "other_scores")
    meta.write_text(text)
    assert check_goldens.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL fastv/case1: hf_keep: 6 instead of 5" in out
    assert "FAIL fastv/case2: the runner does not look at expected_new" in out
    for number in (3, 5, 7, 8):
        assert f"FAIL fastv/case{number}: cannot be read: " in out
    assert "FAIL fastv/case9: the npz file has no 'hidden'" in out
    assert "FAIL hiprune/case4: unknown kind 'other_scores'" in out
    assert out.endswith("1 passed, 8 failed\n")


def test_a_case_that_shows_a_mistake_is_skipped_with_the_reason_and_is_not_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner(case: Case) -> None:
        if case["hf_keep"] == 0:
            raise Skipped("the authors keep none")
        usual(case)

    usual: Runner = RUNNERS["fastv"]
    monkeypatch.setitem(RUNNERS, "fastv", runner)
    copy("fastv/case4", tmp_path / "fastv/case0")
    strict = copy("fastv/case4", tmp_path / "fastv/case1")
    strict.write_text(json.dumps({**json.loads(strict.read_text()), "hf_keep": 0, "strict": "a quirk"}))
    assert check_goldens.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "skip fastv/case1: the authors keep none"
    assert lines[1].startswith("fastv: 1 of 2 passed, 1 skipped (")
    assert lines[-1] == "1 passed, 0 failed, 1 skipped"
    plain = copy("fastv/case4", tmp_path / "fastv/case2")
    plain.write_text(json.dumps({**json.loads(plain.read_text()), "hf_keep": 0}))
    assert check_goldens.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL fastv/case2: skipped (the authors keep none), though its JSON file does not say 'strict'" in out
    assert out.endswith("1 passed, 1 failed, 1 skipped\n")


def test_the_checker_runs_only_the_folders_that_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy("fastv/case4", tmp_path / "fastv/case0")
    copy("vtw/case2", tmp_path / "vtw/case2")
    assert check_goldens.main([str(tmp_path), "--methods", "vtw"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vtw: 1 of 1 passed (") and lines[1:] == ["1 passed, 0 failed"]
    assert check_goldens.main([str(tmp_path), "--methods", "vtw,fastw"]) == 2
    assert capsys.readouterr().err == f"{tmp_path} holds no golden cases of fastw.\n"


def changed(path: Path, key: str, value: object) -> Case:
    case = Case(path)
    case.settings[key] = value
    return case


def test_what_the_json_says_of_a_prompts_curve_is_compared() -> None:
    path = GOLDENS / "autoprune/case6.json"
    runner = runner_of(Case(path))
    assert runner is not None
    for key in ("dynamic_k", "keep_percent", "mi_layer0_used", "mi_sum_layer1"):
        with pytest.raises(Failed, match=key):
            given = Case(path).settings[key]
            run(changed(path, key, given[::-1] if isinstance(given, list) else given + 0.01), runner)


def test_an_array_that_a_case_lacks_is_not_asked_for_but_one_must_be_compared() -> None:
    path = GOLDENS / "fastv/case4.json"
    runner, case = runner_of(Case(path)), Case(path)
    assert runner is not None
    expected = [name for name in case.arrays if name not in ("attn_last_row", "hidden")]
    del case.arrays[expected[0]]
    run(case, runner)
    with pytest.raises(Failed, match="compared nothing"):
        for name in expected[1:]:
            del case.arrays[name]
        case.compared.clear()
        run(case, runner)


def test_a_clustering_without_recorded_noise_was_run_with_zeros(tmp_path: Path) -> None:
    pairs = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    merged = cluster_merge(pairs, 2, torch.zeros(4)).merged
    assert not torch.equal(merged, cluster_merge(pairs, 2).merged)
    path = tmp_path / "sparsevlm/case0.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"method": "sparsevlm", "kind": "cluster_and_merge", "clusters": 2}))
    np.savez(path.with_suffix(".npz"), x=pairs.numpy(), merged=merged.numpy())
    assert check_goldens.main([str(tmp_path)]) == 0


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_cases_is_one_sentence(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "none"
    if make:
        (folder / "fastv").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, str(TESTS / "check_goldens.py"), str(folder)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "holds no golden cases" in done.stderr


def test_mustdrop_where_no_token_passes_the_filter() -> None:
    """The authors go on with the key tokens alone; what the library keeps without any says nothing about the filter."""
    method = MustDrop(global_threshold=1.0, individual_threshold=1.0)
    signals = {"text": torch.full((2, 6), 0.01), "cls": torch.zeros(6)}
    image = view(6, 5, signals)
    assert adaptive._passing(method, image) == []
    signals["text"][1, [0, 3, 5]] = 1.0
    assert adaptive._passing(method, image) == [0, 3, 5]


@pytest.mark.parametrize("iterations", [1, 5, 10])
def test_gprune_scores_are_held_to_float64(iterations: int) -> None:
    generator = torch.Generator().manual_seed(9)  # where a plain product of float32 is off by more than 1e-5
    centres = torch.randn(8, 64, generator=generator)
    own = centres[torch.randint(0, 8, (1024,), generator=generator)]
    tokens = (3 * 512 * (own + 0.3 * torch.randn(1024, 64, generator=generator))).round() / 512
    options = {"temperature": 0.005, "iterations": iterations}
    default, authors = GPrune(**options), GPrune(**options, compat="official")
    spatial._same_scores(default, authors, tokens)
    with pytest.raises(Failed, match="scores differ"):
        spatial._same_scores(default, GPrune(temperature=0.006, iterations=iterations), tokens)
