"""The parts of the plugin for vLLM that need no vLLM: what it is asked, what it refuses, and positions."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import built, inputs_of

import vlmprune
from vlmprune import cli
from vlmprune.assets import embedded_path
from vlmprune.core.errors import UserError
from vlmprune.runtime.apart import Apart
from vlmprune.serve import overrides
from vlmprune.serve.vllm.asked import Asked, asked_of
from vlmprune.serve.vllm.block import Block, text_in
from vlmprune.serve.vllm.deepstack import Levels, levels_of
from vlmprune.serve.vllm.families import TESTED
from vlmprune.serve.vllm.launch import vllm_command
from vlmprune.serve.vllm.limits import check_engine
from vlmprune.serve.vllm.positions import going_on, shortened, with_offsets, without_offsets, written
from vlmprune.serve.vllm.ranks import check_ranks, on_ranks

ROPE = ("input_ids", "mm_token_type_ids", "video_grid_thw")


def test_overrides_carry_a_recipe_to_other_processes() -> None:
    given = json.loads(json.dumps(overrides("hiprune", keep=0.25, seed=3, alpha=0.2)))
    asked = asked_of(SimpleNamespace(hf_overrides=given))
    assert asked == Asked("hiprune(alpha=0.2):0.25", 3, None)
    assert vlmprune.recipe(asked.recipe) == vlmprune.recipe("hiprune", 0.25, alpha=0.2)


@pytest.mark.parametrize("given", [None, {}, {"vlmprune": {"recpe": "divprune:0.5"}}, lambda config: config])
def test_an_engine_must_be_told_how_to_prune(given: object) -> None:
    with pytest.raises(UserError, match=r"vlmprune\.serve\.overrides"):
        asked_of(SimpleNamespace(hf_overrides=given))


def test_wrong_overrides_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="no method"):
        overrides("divprun", keep=0.5)
    with pytest.raises(UserError, match="needs a budget"):
        overrides("divprune")
    with pytest.raises(UserError, match="positions='sorted'"):
        overrides("divprune", keep=0.5, positions="sorted")


def engine_config(**changed: object) -> SimpleNamespace:
    parts: dict[str, dict[str, object]] = {
        "parallel_config": {"pipeline_parallel_size": 1},
        "compilation_config": {"compile_mm_encoder": False},
        "multimodal_config": {"video_pruning_rate": None, "mm_processor_kwargs": None},
    }
    made = {name: SimpleNamespace(**{k: changed.get(k, v) for k, v in part.items()}) for name, part in parts.items()}
    model = SimpleNamespace(multimodal_config=made.pop("multimodal_config"))
    others = {name: changed.get(name) for name in ("lora_config", "speculative_config")}
    return SimpleNamespace(model_config=model, **made, **others)


UNTESTED = {
    "--pipeline-parallel-size": {"pipeline_parallel_size": 2},
    "--enable-lora": {"lora_config": object()},
    "--speculative-config": {"speculative_config": object()},
    "compile_mm_encoder": {"compile_mm_encoder": True},
    "--video-pruning-rate": {"video_pruning_rate": 0.5},
}


@pytest.mark.parametrize("name", UNTESTED)
def test_what_was_not_tested_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"not tested with {name}"):
        check_engine(engine_config(**UNTESTED[name]), "0.32.0")


@pytest.mark.parametrize("name", ["vlmprune_query", "vlmprune_latest"])
def test_an_engine_has_nothing_of_a_request(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is for requests alone"):
        check_engine(engine_config(mm_processor_kwargs={name: "1"}), "0.32.0")


def test_an_engine_has_its_budget_in_the_overrides_alone() -> None:
    with pytest.raises(UserError, match="vlmprune_keep is for requests alone"):
        check_engine(engine_config(mm_processor_kwargs={"vlmprune_keep": "0.5"}), "0.32.0")


def test_another_vllm_is_refused() -> None:
    check_engine(engine_config(), "0.32.1")
    with pytest.raises(UserError, match=r"tested with vLLM 0\.32\.x, and this is 0\.33\.0"):
        check_engine(engine_config(), "0.33.0")


def test_an_encoder_that_cannot_be_shared_out_is_refused() -> None:
    def check(ranks: int, **tower: object) -> None:
        config = SimpleNamespace(model_type="internvl", vision_config=SimpleNamespace(**tower))
        check_ranks(SimpleNamespace(tensor_parallel_size=ranks), config)

    check(2, num_attention_heads=16, use_qk_norm=False)
    check(8, num_heads=12)  # copied
    check(1, num_attention_heads=25, use_qk_norm=True)
    with pytest.raises(UserError, match="this internvl normalises queries and keys over all of its heads"):
        check(2, num_attention_heads=16, use_qk_norm=True)
    with pytest.raises(UserError, match="the 25 heads of this model's encoder over GPUs, and 2 GPUs do not divide"):
        check(2, num_attention_heads=25)


def test_a_method_that_merges_inside_a_shared_encoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmprune.serve.vllm.ranks.is_shared", lambda attention: True)
    with pytest.raises(UserError, match="tome merges inside the encoder, whose heads vLLM has shared out"):
        on_ranks(Apart(built("llava"), vlmprune.recipe("tome(inside=True):0.5")), None)


def test_the_entry_point_imports_next_to_nothing() -> None:
    code = "import sys, vlmprune.serve.vllm; print({'torch', 'transformers', 'vllm'} & {*sys.modules})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


# ---------------------------------------------------------------- the command line


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """As if vLLM were installed; the commands that would have been run."""
    run: list[list[str]] = []
    monkeypatch.setattr("vlmprune.serve.engine.find_spec", lambda name: name == "vllm")
    monkeypatch.setattr("vlmprune.serve.vllm.launch.run_server", run.append)
    return run


def test_serve_starts_vllm_with_the_overrides(installed: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--method", "divprune", "--keep", "0.25", "--port", "8123", "--", "--max-model-len", "512"]
    assert cli.main(["serve", "llava", *options]) == 0
    [command] = installed
    assert command[3:5] == ["serve", str(embedded_path("llava"))] and command[-2:] == ["--max-model-len", "512"]
    given = json.loads(command[command.index("--hf-overrides") + 1])
    assert asked_of(SimpleNamespace(hf_overrides=given)).recipe == "divprune:0.25"
    assert command[command.index("--port") + 1] == "8123" and "--trust-request-mm-kwargs" not in command
    assert "divprune:0.25 with vLLM" in capsys.readouterr().out


@pytest.mark.parametrize("canary", [0.0, 0.02])
@pytest.mark.parametrize("allowed", [False, True])
def test_serve_allows_budgets_of_requests(allowed: bool, canary: float, installed: list[list[str]]) -> None:
    options = ["--method", "divprune", "--keep", "0.25", *["--allow-request-keep"] * allowed]
    assert cli.main(["serve", "llava", *options, *(["--canary", str(canary)] if canary else [])]) == 0
    [command] = installed
    given = json.loads(command[command.index("--hf-overrides") + 1])["vlmprune"]
    assert given["request_keep"] is allowed and given["canary"] == canary
    module, _, name = command[command.index("--middleware") + 1].rpartition(".")
    assert callable(getattr(import_module(module), name))
    assert ("--trust-request-mm-kwargs" in command) is (allowed or canary > 0)


@pytest.mark.parametrize("allowed", [False, True])
def test_serve_tells_vllm_the_question(allowed: bool, installed: list[list[str]]) -> None:
    options = ["--method", "trim", "--keep", "0.25", *["--allow-request-query"] * allowed]
    assert cli.main(["serve", "llava", *options]) == 0
    [command] = installed
    given = asked_of(SimpleNamespace(hf_overrides=json.loads(command[command.index("--hf-overrides") + 1])))
    assert given.reads and given.request_query is allowed and "--trust-request-mm-kwargs" in command
    assert given.text_tower == str(embedded_path("llava") / "clip"), "the embedded model's own"


def test_serve_tells_vllm_how_old_images_are(installed: list[list[str]]) -> None:
    assert cli.main(["serve", "llava", "--method", "divprune", "--keep-latest", "0.5", "--keep-older", "0.1"]) == 0
    [command] = installed
    given = asked_of(SimpleNamespace(hf_overrides=json.loads(command[command.index("--hf-overrides") + 1])))
    assert given.recipe == "divprune:0.5/latest+0.1/older" and "--trust-request-mm-kwargs" in command
    assert given.under(None).recipe == "divprune:0.5" and given.under(7).recipe == "divprune:7"


def test_requests_cannot_set_the_budget_of_two_methods() -> None:
    with pytest.raises(UserError, match="cannot set the budget of divprune"):
        vllm_command("llava", vlmprune.recipe("divprune:0.5 > uniform:0.5"), request_keep=True)


WRONG = {
    "fastv@2:0.5": "fastv prunes inside the LLM",
    "divprune:0.5/latest+0.1/older > uniform:0.5": "is for a single method in this engine",
    "no_such_method:0.5": "no_such_method",
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_vllm_cannot_do_is_one_sentence(
    spec: str, installed: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "llava", "--engine", "vllm", "--method", spec]) == 2
    err = capsys.readouterr().err
    assert WRONG[spec] in err and err.count("\n") == 1 and not installed


OPTIONS = {
    "--canary 2": "--canary 2.0 must be a share of the requests",
    "--allow-request-query": "No method in divprune:0.5 reads the question: leave out --allow-request-query",
    "--device cpu": "--device cpu is for",
    "--positions original": "counts those of this model one by one: give --positions compact",
    "-- --hf-overrides={}": "--hf-overrides is what vlmprune sets itself",
    "-- --hf_overrides.vlmprune x": "--hf-overrides is what vlmprune sets itself",
    "-- --trust-request-mm-kwargs": "--trust-request-mm-kwargs is what vlmprune sets itself",
    "-- --grpc": "--grpc answers clients without vLLM's HTTP server",
    "-- --grpc_port=1": "--grpc-port answers clients without vLLM's HTTP server",
    "-- --headless": "--headless starts an engine whose server is on another machine",
    "-- --config file.yaml": "--config has further options, which vlmprune does not see",
    "-- --tokens-only": "--tokens-only takes prompts in which images were counted elsewhere",
    "-- --data-parallel-multi-port-external-lb": "would add up each other's figures, and was not tested",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_that_vllm_has_not(
    options: str, installed: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "llava", "--method", "divprune", "--keep", "0.5", *options.split()]) == 2
    err = capsys.readouterr().err
    assert OPTIONS[options] in err and err.count("\n") == 1 and not installed


def test_vllms_server_in_rust_is_refused(
    installed: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    assert cli.main(["serve", "llava", "--method", "divprune", "--keep", "0.5"]) == 2
    assert "VLLM_USE_RUST_FRONTEND answers clients without" in capsys.readouterr().err and not installed


def test_a_method_without_a_budget_has_no_canary() -> None:
    with pytest.raises(UserError, match=r"prumerge takes no budget: leave out canary=0\.02"):
        overrides("prumerge(adaptive=True)", canary=0.5)


def test_compact_positions_are_refused_on_mrope() -> None:
    with pytest.raises(UserError, match="numbers the kept tokens anew"):
        vllm_command("qwen2_5_vl", vlmprune.recipe("divprune:0.5"), positions="compact")


def test_an_untested_family_is_refused(tmp_path: object) -> None:
    assert "gemma3" not in TESTED
    built("gemma3").config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="this model is gemma3: serve it with engine='transformers'"):
        vllm_command(str(tmp_path), vlmprune.recipe("divprune:0.5"))


# ---------------------------------------------------------------- positions


def test_offsets_survive_the_dtype_of_the_model() -> None:
    features, offsets = torch.randn(3, 8).bfloat16(), torch.tensor([[0, 1, 2], [255, 256, 300], [65535, 5, 257]])
    rows = with_offsets(features, offsets)
    assert rows.dtype == torch.bfloat16
    back = without_offsets(rows)
    assert torch.equal(back[0], features) and torch.equal(back[1][:, :3], offsets)
    assert back[1][:, 3].tolist() == [0, 1, 2], "and which row of its item each is"
    with pytest.raises(RuntimeError, match="cannot be carried"):
        with_offsets(features, offsets + 65536)


@pytest.mark.parametrize("cut", [0, 3, 7])
def test_positions_are_those_of_a_session(cut: int) -> None:
    """Two images of a prompt, each with half of its tokens, whose positions are written in two parts and twice."""
    model, inputs = built("qwen2_5_vl"), inputs_of("qwen2_5_vl", [[0, 1]])
    whole, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    whole = whole[-3:, 0]
    visual = inputs["mm_token_type_ids"][0] == 1
    columns = visual.nonzero().squeeze(1)
    borders = (columns.diff() > 1).nonzero().squeeze(1) + 1
    images = [part.tolist() for part in torch.tensor_split(columns, borders)]
    kept = [image[1::2] for image in images]
    offsets = [(whole[:, own] - whole[:, image[0] - 1].max() - 1).T for image, own in zip(images, kept, strict=True)]
    items = [without_offsets(with_offsets(own.new_zeros(len(own), 1), own))[1] for own in offsets]
    stay = (~visual).index_fill(0, torch.tensor([*kept[0], *kept[1]]), True)

    blocks = [(image[0], len(image), len(own)) for image, own in zip(images, kept, strict=True)]
    positions = shortened(whole, blocks)
    left = visual[stay]
    assert positions.shape[1] == len(left)
    column = int(left.nonzero()[cut])
    for _ in range(2):
        positions = written(positions, left, [items[0][:cut]], 0) if cut else positions
        positions = written(positions, left, [items[0][cut:], items[1]], column)
    assert torch.equal(positions, whole[:, stay])
    for wrong, begin in (([*items, items[1]], 0), ([items[0][2:]], 0), ([items[0], items[1][1:]], 0)):
        with pytest.raises(RuntimeError, match="do not fit the placeholders"):
            written(positions, left, wrong, begin)


def test_a_block_of_text_and_placeholders() -> None:
    ids = [5, 9, 9, 6, 7, 9, 8, 9, 4]
    text = text_in(ids, 9)
    assert text.tolist() == [[6, 7, 8], [2, 2, 3]]
    block = Block(text, 4)
    assert block.written(9).tolist() == ids[1:-1] and block.columns.tolist() == [0, 1, 4, 6]
    assert block.in_order(torch.tensor([6, 7, 8]), torch.tensor([1, 2]), torch.tensor([4, 6])).tolist() == [
        6,
        7,
        1,
        8,
        2,
    ]
    alone = Block(text_in([5, 9, 9], 9), 2)
    assert alone.written(9).tolist() == [9, 9] and alone.visual.all()


@pytest.mark.parametrize("spec", ["divprune:0.3", "divprune:[1, 3]/frame", "visionzip:0.4", "prunesid:0.4"])
@torch.no_grad()
def test_a_block_holds_what_a_session_reads(spec: str) -> None:
    """Of a video whose frames stand apart: the rows of the first decoder layer, the positions and the DeepStack."""
    model, inputs = built("qwen3_vl video"), inputs_of("qwen3_vl video", [[0]])
    [ids], video = inputs["input_ids"], model.config.video_token_id
    first, last = (ids == video).nonzero()[[0, -1], 0].tolist()
    call = {name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw")}
    apart, parts = Apart(model, vlmprune.recipe(spec)), inputs["video_grid_thw"].prod(1).tolist()
    [count] = apart.counts("video", call, parts)
    block = Block(text_in(ids.tolist(), video), count.whole)
    [kept] = apart.encode("video", call, parts, [0], [block.columns])
    seen: list[dict[str, Any]] = []
    language = model.model.language_model
    with vlmprune.prune(model, spec) as session:
        handle = language.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
        model(**inputs)
        handle.remove()
    [given], [[due]] = seen, session.last.kept
    assert len(kept.features) == count.kept < count.whole and len(due)
    rows = block.in_order(model.get_input_embeddings()(block.ids), kept.features, kept.places)
    assert torch.equal(given["inputs_embeds"][0, first : first + len(rows)], rows)
    columns = block.in_order(block.text, kept.columns, kept.places)
    whole, _ = model.model.get_rope_index(**{name: inputs[name] for name in ROPE})
    assert torch.equal(
        given["position_ids"][-3:, 0, first : first + len(rows)], whole[-3:, 0, first : last + 1][:, columns]
    )
    text = torch.ones(len(block.ids), dtype=torch.bool)
    visual = block.in_order(text, torch.zeros(count.kept, dtype=torch.bool), kept.places).logical_not()
    assert torch.equal(given["visual_pos_masks"][0, first : first + len(rows)], visual)
    for level, own in zip(given["deepstack_visual_embeds"], kept.levels, strict=True):
        assert torch.equal(level, own)


def test_new_tokens_go_on_behind_the_last_one() -> None:
    positions = torch.tensor([[0, 1, 14, 4], [0, 1, 2, 4], [0, 1, 3, 4]])  # the third is of a long video's last frame
    assert positions.shape[1] + going_on(positions) == 5


# ---------------------------------------------------------------- DeepStack


def test_levels_are_added_where_the_images_stand() -> None:
    layers = [torch.nn.Identity(), torch.nn.Identity()]
    levels = Levels(layers, most=6, width=2, dtype=torch.float32, device="cpu")
    images = [torch.tensor([[0.0, 0, 1, 2, 3, 4]]), torch.tensor([[9.0, 9, 5, 6, 7, 8]])]
    left = levels.put(images, torch.tensor([False, True, False, True]), 4)
    assert [own.tolist() for own in left] == [[[0, 0]], [[9, 9]]]
    hidden = torch.ones(1, 5, 2)  # a step may be filled up
    assert layers[0](hidden)[0].tolist() == [[1, 1], [2, 3], [1, 1], [6, 7], [1, 1]]
    assert layers[1](hidden)[0].tolist() == [[1, 1], [4, 5], [1, 1], [8, 9], [1, 1]]
    levels.check(torch.zeros(4, 2))
    for embeddings in (None, torch.zeros(3, 2)):
        with pytest.raises(RuntimeError, match="runs a step on other tokens"):
            levels.check(embeddings)
    assert levels.put([], None, 6) == []
    levels.check(None)
    assert all(torch.equal(layer(hidden), hidden) for layer in layers), "nothing is left of the step before"


@pytest.mark.parametrize(
    ("channels", "visual", "sentence"), [(5, 2, "channels do not hold"), (6, 1, "do not fit its placeholders")]
)
def test_levels_that_do_not_fit_are_an_error(channels: int, visual: int, sentence: str) -> None:
    levels = Levels([torch.nn.Identity(), torch.nn.Identity()], most=6, width=2, dtype=torch.float32, device="cpu")
    with pytest.raises(RuntimeError, match=sentence):
        levels.put([torch.zeros(2, channels)], torch.arange(4) < visual, 4)


def test_steps_that_vllm_cuts_in_two_are_refused() -> None:
    config = SimpleNamespace(parallel_config=SimpleNamespace(use_ubatching=True))
    assert levels_of(built("qwen2_5_vl").model, config) is None
    with pytest.raises(UserError, match="not tested with --enable-dbo"):
        levels_of(built("qwen3_vl").model, config)
