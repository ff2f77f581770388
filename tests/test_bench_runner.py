"""The runner on a small LLaVA with random weights: kill and continue, what is shared, what is counted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import RAGGED, alone, built
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_folder import save_clip, save_family, save_llava
from transformers import LlamaConfig

import vlmprune
from vlmprune import SharedPrefill, prune
from vlmprune.ask import write_examples
from vlmprune.bench import runner
from vlmprune.bench.batch import Batch
from vlmprune.bench.compare import build_tables
from vlmprune.bench.flops import encoder_flops, papers_flops, prefill_flops, visual_per_layer
from vlmprune.bench.load import load_model, weights_digest
from vlmprune.bench.plan import METHODS, Plan, split_methods
from vlmprune.bench.protocol import PLAIN, Asker, protocol_for
from vlmprune.bench.protocols import Pixels
from vlmprune.bench.runner import run_bench
from vlmprune.bench.shapes import shape_of
from vlmprune.bench.store import Run, Store, load_records, load_results
from vlmprune.bench.worker import Here, Worker
from vlmprune.core.errors import UserError
from vlmprune.models import adapter_for
from vlmprune.report.latex import latex
from vlmprune.report.markdown import markdown
from vlmprune.tasks import generated_tasks
from vlmprune.tasks.canvas import canvas_for
from vlmprune.tasks.task import Place
from vlmprune.testing import FAMILIES

SMALL = {"methods": ("random", "fastv"), "keeps": (0.5, 5), "tasks": ("synth-mme", "synth-choice"), "limit": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("model")))


def small_plan(folder: str, **changes: object) -> Plan:
    return Plan(models=(folder,), batch_size=4, device="cpu", **{**SMALL, **changes})


def run_with_examples(plan: Plan, out: Path, progress: Callable[[runner.Progress], None] = lambda at: None) -> None:
    """As `vlmprune bench` does."""
    run_bench(plan, out, progress, then=write_examples)


@pytest.fixture(scope="module")
def finished(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    run_with_examples(small_plan(folder), out)
    return out


def content(out: Path) -> dict[str, object]:
    """Everything in a result folder but where and from which commit it was made."""
    files: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != ".vlmprune":
            data: object = path.read_bytes()
            if path.suffix == ".json":
                data = {**json.loads(path.read_text()), "made": 0}
            files[str(path.relative_to(out))] = data
    return files


PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from vlmprune.bench.plan import Plan
from vlmprune.bench.runner import run_bench
plan = Plan(models=(sys.argv[1],), batch_size=4, device="cpu", methods=("random", "fastv"), keeps=(0.5, 5),
            tasks=("synth-mme", "synth-choice"), limit=10)
run_bench(plan, sys.argv[2])
"""


def test_a_task_of_videos_is_left_out_of_a_model_that_takes_none(folder: str, tmp_path: Path) -> None:
    run_bench(small_plan(folder, methods=(), tasks=("synth-choice", "synth-video"), limit=2), tmp_path)
    assert {result.task for result in load_results(tmp_path)} == {"synth-choice"}
    (table,) = build_tables(tmp_path)
    assert "Without synth-video: llava takes pictures only (synth-video@pictures shows the frames as pictures)." in table.notes()
    assert "Without synth-video: llava takes pictures only (synth-video@pictures shows the frames as pictures)." in markdown([table])
    with pytest.raises(UserError, match=r"No question of synth-video can be asked of .*: llava takes pictures only"):
        run_bench(small_plan(folder, methods=(), tasks=("synth-video",)), tmp_path)


def test_clips_and_two_pictures_are_asked_and_pruned(tmp_path: Path) -> None:
    model = save_family("qwen2_5_vl", tmp_path / "model")
    tasks = ("synth-video", "synth-images", "synth-ground")
    run_bench(small_plan(str(model), tasks=tasks, methods=("fastv@1",), keeps=(0.5,), limit=2), tmp_path / "out")
    found = {(result.task, result.recipe): load_records(result) for result in load_results(tmp_path / "out")}
    assert {task for task, _ in found} == set(tasks)
    for (_, recipe), records in found.items():
        assert [record.problem for record in records] == ["", ""]
        for record in records:
            kept = record.visual_before if recipe == "vanilla" else record.visual_before // 2
            assert recipe == "downsample:0.5" or abs(record.visual_kept - kept) <= 1


def test_killed_and_continued_is_the_same_to_the_byte(folder: str, finished: Path, tmp_path: Path) -> None:
    whole = sum(path.stat().st_size for path in finished.rglob("*.jsonl"))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, folder, str(tmp_path)])
    deadline = time.monotonic() + 120
    while sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl")) < 0.6 * whole:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    last = max(tmp_path.rglob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    with last.open("a") as file:
        file.write('{"id": "synth-ch')  # as a kill in mid-write would leave it
    assert len(list(tmp_path.rglob("synth-*/*.json"))) < len(list(finished.rglob("synth-*/*.json")))
    run_with_examples(small_plan(folder), tmp_path)
    assert content(tmp_path) == content(finished)
    assert repr(build_tables(tmp_path)).replace(str(tmp_path), "") == repr(build_tables(finished)).replace(
        str(finished), ""
    )


def test_a_finished_folder_is_not_computed_again(folder: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(finished)

    def forbidden(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Batch, "run", forbidden)
    run_with_examples(small_plan(folder), finished)
    assert content(finished) == before


def test_one_more_method_computes_only_itself(folder: str, finished: Path, tmp_path: Path) -> None:
    run_bench(small_plan(folder, methods=("random",), tasks=("synth-choice",)), tmp_path)
    computed: list[str] = []
    original = Store.append

    def counting(self: Store, run: Run, records: object) -> None:
        computed.append(run.method)
        original(self, run, records)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "append", counting)
        run_bench(small_plan(folder, tasks=("synth-choice",)), tmp_path)
    assert set(computed) == {"fastv@2"}
    records = {(r.recipe, r.task): [x.output for x in load_records(r)] for r in load_results(finished)}
    for result in load_results(tmp_path):
        assert [x.output for x in load_records(result)] == records[result.recipe, result.task]


def test_baselines_are_always_there(finished: Path) -> None:
    rows = [(result.method, result.keep) for result in load_results(finished) if result.task == "synth-choice"]
    assert rows[0] == ("vanilla", 1.0)
    assert {method for method, _ in rows} == {"vanilla", "random", "downsample", "fastv@2"}
    plan = Plan(models=("llava",), methods=("dart",), keeps=(0.5,))
    assert [v.text for v in plan.variants()] == ["vanilla", "random:0.5", "downsample:0.5", "dart@2:0.5"]
    assert len(Plan(models=("llava",)).variants()) == 1 + 8 * 3


def test_token_counts(finished: Path) -> None:
    for result in load_results(finished):
        for record in load_records(result):
            kept = {"vanilla": 49, 0.5: 24, 5: 5}["vanilla" if result.is_vanilla else result.keep]
            assert record.visual_before == 49 and record.input_tokens > 49
            if result.method == "downsample":
                assert 0 < record.visual_kept <= kept and record.visual_encoded == record.visual_kept
                continue
            assert record.visual_kept == kept and record.visual_encoded == 49
            entering = (2 * 49 + 2 * kept) / 4 if result.method == "fastv@2" else kept
            assert record.visual_entering == pytest.approx(entering)
            if not result.is_vanilla:
                assert record.stages[-1] == (2 if result.method == "fastv@2" else 0, kept)


def test_shared_encoding_answers_as_plain_inputs_do(folder: str, finished: Path) -> None:
    loaded = load_model(folder, "cpu")
    samples = list(islice(generated_tasks()["synth-choice"].samples(), 4))
    records = {r.recipe: load_records(r) for r in load_results(finished) if r.task == "synth-choice"}
    task, kind = generated_tasks()["synth-choice"], loaded.model.config.model_type
    inputs = Asker(PLAIN, task, loaded.processor, kind).inputs(samples)
    for recipe in ("random:5", "fastv@2:0.5"):
        with vlmprune.prune(loaded.model, recipe), torch.no_grad():
            ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=16)
        texts = loaded.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert texts == [record.output for record in records[recipe][:4]]


def test_the_model_is_left_as_it_was_and_answers_vary(folder: str, finished: Path) -> None:
    outputs = {x.output for r in load_results(finished) for x in load_records(r)}
    assert len(outputs) > 20, "the random model says too little for these tests to mean much"


def test_seeds_repeat_what_draws_and_are_one_row(folder: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run_bench(small_plan(folder, seeds=(0, 2), tasks=("synth-choice",)), tmp_path)
    results = [result for result in load_results(tmp_path) if result.task == "synth-choice"]
    drawn = {result.recipe for result in results if result.seed is not None}
    assert drawn == {"random:0.5", "random:5"}
    assert sorted(r.seed for r in results if r.recipe == "random:5") == [0, 2]
    assert len(results) == len({r.recipe for r in results}) + 2, "what does not draw ran once, and was there already"
    (table,) = build_tables(tmp_path)
    row = next(row for row in table.rows if row.recipe == "random:5")
    cell = row.cells["synth-choice"]
    assert row.seeds == (0, 2) and cell.spread is not None
    assert cell.value.value == pytest.approx(sum(cell.spread.values) / 2)
    assert row.cells["synth-mme"].spread is None


def test_who_draws_says_so() -> None:
    texts = ("random", "random@2", "fuse(random:0.1)@2", "divprune:0.5 > random@2:0.5", "divprune", "downsample")
    plan = Plan(models=("llava",), methods=texts, keeps=(0.1,), seeds=(3, 4, 3))
    seeds: dict[str, list[int | None]] = {}
    for variant in plan.variants():
        seeds.setdefault(variant.text, []).append(variant.seed)
    alone = {text for text, found in seeds.items() if found == [None]}
    assert {"vanilla", "divprune:0.1", "downsample:0.1"} == alone
    assert all(found == [3, 4] for text, found in seeds.items() if text not in alone)
    for wrong in ((), (-1,)):
        with pytest.raises(UserError, match="seeds needs whole numbers"):
            replace(plan, seeds=wrong).check()


def test_another_seed_changes_random_alone(folder: str, finished: Path, tmp_path: Path) -> None:
    run_bench(small_plan(folder, seeds=(1,), tasks=("synth-choice",)), tmp_path)
    old = {r.recipe: load_records(r) for r in load_results(finished) if r.task == "synth-choice"}
    new = {r.recipe: load_records(r) for r in load_results(tmp_path)}
    assert {recipe for recipe in new if new[recipe] != old[recipe]} <= {"random:0.5", "random:5"}
    assert new["random:5"] != old["random:5"]


def test_interrupt_keeps_what_is_there(folder: str, finished: Path, tmp_path: Path) -> None:
    def stop(at: runner.Progress) -> None:
        if at.done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(small_plan(folder), tmp_path, stop)
    assert len(list(tmp_path.rglob("*.jsonl"))) > 0
    run_with_examples(small_plan(folder), tmp_path)
    assert content(tmp_path) == content(finished)


def test_progress_counts_every_step_once(folder: str, finished: Path) -> None:
    seen: list[runner.Progress] = []
    run_with_examples(small_plan(folder), finished, seen.append)
    steps = 7 * 3 * 2  # variants, batches, tasks
    assert [at.done for at in seen] == list(range(steps + 1))
    assert {at.due for at in seen} == {steps}


def test_recipes_and_lists() -> None:
    assert split_methods("random,random@2 , divprune(space=tower)") == ("random", "random@2", "divprune(space=tower)")
    assert split_methods("a@8,16,24:0.5,b(x=1, y=2)") == ("a@8,16,24:0.5", "b(x=1, y=2)")
    assert {"random@2", "divprune", "cdpruner"} < set(split_methods("all"))
    assert split_methods("all, visionzip-64")[:-1] == split_methods("all")
    chain = "divprune:0.5 > fastv@2:0.5"
    plan = Plan(models=("llava",), methods=(chain, "fastv:0.1", "fastv"), keeps=(0.1, 0.2))
    variants = {v.text: (v.method, v.keep) for v in plan.variants()}
    assert variants[chain] == (chain, None)
    assert variants["fastv@2:0.1"] == ("fastv@2", 0.1)
    assert sum(method == "fastv@2" for method, _ in variants.values()) == 2


def test_what_fuses_is_compared_with_itself_without_fusion() -> None:
    methods = ("hilo", "hilo(lambda_=0.0)", "divprune:0.5 > fuse(divprune:0.2)@2", "divprune")
    texts = [variant.text for variant in Plan(models=("llava",), methods=methods, keeps=(0.2, 9)).variants()]
    assert texts[5:] == [
        *("hilo:0.2", "hilo:9", "hilo(lambda_=0):0.2", "hilo(lambda_=0):9"),
        *("hilo(lambda_=0.0):0.2", "hilo(lambda_=0.0):9"),
        *("divprune:0.5 > fuse(divprune:0.2)@2", "divprune:0.5 > fuse(divprune:0.2, lambda_=0)@2"),
        *("divprune:0.2", "divprune:9"),
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ("fastw",)}, "no method 'fastw'"),
        ({"tasks": ("synth-pop",)}, "no task 'synth-pop'"),
        ({"keeps": (0.0,)}, "keep=0.0 is not a budget"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"positions": "best"}, "positions='best'"),
        ({"methods": ("fastv@4",)}, "cannot act before decoder layer 4"),
    ],
)
def test_mistakes_in_a_plan(folder: str, tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run_bench(small_plan(folder, **changes), tmp_path)


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean 'llava'"):
        load_model("lava")
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="as a vision-language model"):
        load_model(str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(UserError, match="hub cannot be reached"):
        load_model("someone/something")


def test_folders_with_broken_weights(folder: str, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    weights, config = broken / "model.safetensors", broken / "config.json"
    whole, settings = weights.read_bytes(), config.read_text()

    def complaint() -> str:
        with pytest.raises(UserError) as caught:
            load_model(str(broken), "cpu")
        assert "\n" not in str(caught.value) and str(broken) in str(caught.value)
        return str(caught.value)

    for content in (whole[: len(whole) // 2], b"garbage" * 100, b""):  # cut off in the download, or no such file at all
        weights.write_bytes(content)
        assert "is broken" in complaint()
    tensors = load_file(Path(folder) / "model.safetensors")
    name = next(name for name in sorted(tensors) if "vision" in name)
    save_file({key: value for key, value in tensors.items() if key != name}, weights, metadata={"format": "pt"})
    assert "lack 1 of its tensors, model.vision_tower" in complaint()  # not drawn at random in silence
    weights.write_bytes(whole)
    config.write_text(re.sub(r'"vocab_size": (\d+)', lambda found: f'"vocab_size": {int(found[1]) + 8}', settings))
    assert "do not fit its config.json" in complaint()
    config.write_text("{")
    assert "not a valid JSON file" in complaint()
    weights.unlink()
    config.write_text(settings)
    assert "no file named model.safetensors" in complaint()
    LlamaConfig().save_pretrained(broken)
    assert "is a llama model" in complaint()


def test_a_processor_without_a_chat_template(folder: str, tmp_path: Path) -> None:
    silent = tmp_path / "model"
    shutil.copytree(folder, silent, ignore=shutil.ignore_patterns("chat_template*"))
    for file in silent.glob("*_config.json"):  # where a template may stand as well
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "chat_template"}))
    with pytest.raises(UserError, match=r"cannot word a chat prompt: .*\.$"):
        run_bench(small_plan(str(silent)), tmp_path / "results")


def test_weights_digest_reads_small_files_whole_and_large_ones_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100_000))
    first = weights_digest(tmp_path)
    path.write_bytes(bytes(50_000) + b"\1" + bytes(49_999))
    assert weights_digest(tmp_path) != first
    monkeypatch.setattr("vlmprune.bench.load._WHOLE", 10)
    monkeypatch.setattr("vlmprune.bench.load._PIECE", 100)
    pieces = weights_digest(tmp_path)
    path.write_bytes(b"\1" + bytes(99_999))
    assert weights_digest(tmp_path) != pieces


def test_protocol_of_a_closed_vocabulary_is_the_bare_question(folder: str) -> None:
    assert protocol_for(load_model(folder, "cpu").processor) is PLAIN


def test_flops_by_hand(folder: str) -> None:
    shape = shape_of(load_model(folder, "cpu").model.config)
    assert shape is not None
    # encoder: 49 patches of 3*16*16 into 32, then 3 layers of 50 tokens
    linear = 2 * 50 * (4 * 32 * 32 + 2 * 32 * 48)
    assert encoder_flops(shape, [49]) == 2 * 49 * 768 * 32 + 3 * (linear + 4 * 32 * 50 * 50)
    # decoder: q and o 32x32, k and v 32x16, three 32x48; causal attention over 10 tokens
    layer = 2 * 10 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 4 * 32 * 10 * 11 / 2
    assert prefill_flops(shape, [10, 10]) == 2 * layer + 2 * 32 * shape.vocabulary
    assert papers_flops(32, 48, [10]) == 4 * 10 * 32**2 + 2 * 100 * 32 + 2 * 10 * 32 * 48
    assert papers_flops(32, 48, [10], matrices=3) == 4 * 10 * 32**2 + 2 * 100 * 32 + 3 * 10 * 32 * 48


@pytest.mark.parametrize(
    ("kept", "layer", "share"), [(192, 2, 37.0), (128, 2, 26.7), (64, 2, 16.5), (0, 15, 46.9), (0, 16, 50.0)]
)
def test_the_papers_formulas_give_the_papers_shares(kept: int, layer: int, share: float) -> None:
    """FastV and VTW on LLaVA-1.5-7B, visual tokens alone: the same shares with either count of the MLP."""
    lengths = visual_per_layer(32, 576, [(layer, kept)])
    for matrices in (2, 3):
        ours, whole = (papers_flops(4096, 11008, counts, matrices) for counts in (lengths, [576] * 32))
        assert abs(100 * ours / whole - share) < 0.15
    assert visual_per_layer(4, 49, [(0, 20), (2, 5)]) == [20, 20, 5, 5]


@pytest.mark.parametrize(
    ("kept", "share"), [((322, 180, 100), 32.8), ((241, 101, 42), 21.9), ((110, 21, 4), 11.0)], ids=["192", "128", "64"]
)
def test_pyramiddrop_at_the_papers_budgets(kept: tuple[int, ...], share: float) -> None:
    """Its schedule before layers 2, 8 and 16, by the count with a gated MLP."""
    lengths = visual_per_layer(32, 576, list(zip((2, 8, 16), kept, strict=True)))
    ours, whole = (papers_flops(4096, 11008, counts, matrices=3) for counts in (lengths, [576] * 32))
    assert abs(100 * ours / whole - share) < 0.06


def test_flops_fall_with_the_budget(finished: Path) -> None:
    (table,) = build_tables(finished)
    rows = {row.recipe: row.flops for row in table.rows}
    assert all(flops is not None for flops in rows.values())
    vanilla, early, late, small = (rows[name] for name in ("vanilla", "random:5", "fastv@2:5", "downsample:5"))
    assert vanilla.selection == early.selection == 0 < late.selection
    assert early.prefill < late.prefill < vanilla.prefill
    assert early.encoder == vanilla.encoder > small.encoder
    assert METHODS  # the default methods parse


def test_results_say_what_questions_are_read_by(folder: str, tmp_path: Path) -> None:
    clip = str(save_clip(tmp_path / "clip"))
    asked = {"methods": ("trim", "divprune"), "keeps": (9,), "tasks": ("synth-choice",), "limit": 4}
    replies, rows = {}, {}
    for name, text_tower in (("instruction embeddings", None), ("CLIP text tower", clip)):
        out = tmp_path / name
        run_with_examples(small_plan(folder, **asked, text_tower=text_tower), out)
        results = load_results(out)
        assert {result.method: result.text for result in results} == {
            "vanilla": None, "random": None, "downsample": None, "trim": name, "divprune": None,
        }  # fmt: skip
        [table] = build_tables(out)
        note = f"Image and question compared by {name}: trim."
        assert note in table.notes()
        assert f"{folder}: {note}" in markdown([table]) and note in latex([table])
        replies[name] = {r.method: [record.output for record in load_records(r)] for r in results}
        rows[name] = {r.weights for r in results}
        scene = json.loads(next((out / "examples").glob("*.json")).read_text())["scenes"][0]
        rows[name, "kept"] = scene["replies"]["trim:9"]["stages"][0]["kept"]
    by_embeddings, by_tower = replies.values()
    assert by_embeddings.pop("trim") != by_tower.pop("trim") and by_embeddings == by_tower
    assert rows["instruction embeddings"] != rows["CLIP text tower"], "another setting: not in one table"
    assert rows["instruction embeddings", "kept"] != rows["CLIP text tower", "kept"]


def test_with_a_text_tower_a_method_reads_the_bare_question(folder: str, tmp_path: Path) -> None:
    loaded = load_model(folder, "cpu", str(save_clip(tmp_path / "clip")))
    assert loaded.text_tower is not None
    read: list[str] = []
    text = loaded.text_tower.text
    loaded.text_tower.text = lambda sentence, truncate=False: read.append(sentence) or text(sentence, truncate)
    plan = small_plan(folder, methods=("cdpruner",), keeps=(9,), tasks=("synth-choice",), limit=4)
    with Store(tmp_path / "out") as store:
        variants = plan.variants()
        pool = Here(Worker(plan, loaded, variants))
        runner.ModelBench(plan, variants, pool, store).compute(0, lambda at: None)
    samples = generated_tasks()["synth-choice"].samples(Place(canvas_for(loaded.model.config)))
    assert read == [sample.question for sample in islice(samples, 4)]


def test_a_text_tower_that_does_not_fit_fails_before_anything_is_computed(tmp_path: Path) -> None:
    clip = str(save_clip(tmp_path / "clip"))
    with pytest.raises(UserError, match="has no use here"):
        run_bench(Plan(models=("qwen2_5_vl",), methods=("trim",), text_tower=clip, limit=4), tmp_path / "out")
    assert not list((tmp_path / "out").glob("runs/*"))


def test_a_baseline_that_cannot_act_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    save_family("gemma3", tmp_path / "model")
    plan = small_plan(str(tmp_path / "model"), methods=("divprune",), tasks=("synth-choice",), limit=4)
    run_bench(plan, tmp_path / "out")
    (table,) = build_tables(tmp_path / "out")
    assert {row.method for row in table.rows} == {"vanilla", "random", "divprune"}
    assert any(note.startswith("Without downsample:0.5: ") for note in table.notes())
    with pytest.raises(UserError, match="pictures of one size only"):
        run_bench(replace(plan, methods=("downsample",)), tmp_path / "other")


def test_what_one_of_several_models_refuses_is_left_out_of_its_table(folder: str, tmp_path: Path) -> None:
    save_family("gemma3", tmp_path / "model")
    changes = {"methods": ("divprune", "downsample"), "tasks": ("synth-choice",), "limit": 2}
    plan = replace(small_plan(folder, **changes), models=(folder, str(tmp_path / "model")))
    run_with_examples(plan, tmp_path / "out")
    whole, part = build_tables(tmp_path / "out")
    assert {row.method for row in whole.rows} - {row.method for row in part.rows} == {"downsample"}
    (note,) = [note for note in part.notes() if note.startswith("Without downsample:0.5: ")]
    assert note[-1] == "." != note[-2]
    with pytest.raises(UserError, match=r"Nothing of what was asked can run on .*downsample:0\.5: on this model"):
        run_bench(replace(plan, methods=("downsample",)), tmp_path / "nothing")


def test_a_model_says_whether_all_that_it_sees_can_be_resized() -> None:
    works: dict[tuple[type, bool], list[bool]] = {}
    for family in FAMILIES:
        adapter = adapter_for(built(family))
        with prune(built(family), "downsample:0.5"):
            try:
                built(family)(**alone(family, RAGGED, 0))
                resized = True
            except UserError:
                resized = False
        works.setdefault((type(adapter), adapter.resizes), []).append(resized)
    assert [says for (_, says), found in works.items() if says != all(found)] == []


def test_pictures_of_different_sizes_are_asked_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And in the data's order in the records, with the replies that each gets alone."""
    save_family("qwen2_5_vl", tmp_path / "model")
    rows = []
    for number, side in enumerate((24, 80, 24, 80)):
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "question": f"What is it, {number}?", "answer": "a"}))
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    asked: list[list[str]] = []
    inputs = Asker.inputs
    monkeypatch.setattr(
        Asker, "inputs", lambda self, samples: asked.append([s.id for s in samples]) or inputs(self, samples)
    )
    taken: list[int] = []
    take = SharedPrefill._take
    monkeypatch.setattr(
        SharedPrefill, "_take", lambda self, number, cache: taken.append(number) or take(self, number, cache)
    )
    own = {"tasks": (str(tmp_path / "own.jsonl"),), "pixels": Pixels(256, 6400)}
    plan = small_plan(str(tmp_path / "model"), methods=("fastv@2",), **own)
    replies = {}
    for size in (4, 1):
        asked.clear()
        taken.clear()
        results = run_bench(replace(plan, batch_size=size), tmp_path / f"out{size}")
        replies[size] = {run.recipe: load_records(run) for run in load_results(tmp_path / f"out{size}")}
        assert len(results) == len(replies[size])
        assert [[name[-1] for name in ids] for ids in asked] == (
            [["1", "2", "3", "4"], ["1", "3"], ["2", "4"]] if size == 4 else [["1"], ["2"], ["3"], ["4"]]
        )
        assert taken == [0] * (2 if size == 4 else 4)  # of fastv's second budget
    assert replies[4] == replies[1]
