"""A runtime that is broken in one place: some proof of `vlmprune doctor` must notice.

The places are broken from outside, on the model that the runtime hooks into, so that it does not matter how the runtime
is written.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

import vlmprune
from vlmprune import cli
from vlmprune.doctor import examine
from vlmprune.doctor.methods import BREAKS, try_methods
from vlmprune.doctor.prompts import TOKENS, ask, converse, generate, narrower_window, one_prompt, padded_batch
from vlmprune.doctor.proof import cases_of, prove
from vlmprune.models import adapter_for
from vlmprune.runtime.expected import unchecked
from vlmprune.testing import FAMILIES, prompt
from vlmprune.testing.weights import GEMMA, IMAGE, IMAGE_BEGIN, IMAGE_END, SLIDING, TOWER, builder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def verdict(model: Any, family: str = "llava") -> tuple[list[str], bool]:
    adapter, inputs = adapter_for(model), prompt(FAMILIES[family], [[0]])
    return prove(adapter, [ask(adapter, prompts(adapter, inputs)) for prompts in (one_prompt, padded_batch)])


def failing(lines: list[str]) -> list[str]:
    return [line for line in lines if "FAILS" in line]


# ---------------------------------------------------------------- ways to break it


def override(module: nn.Module, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap a function of this module's class, for this module alone; its signature stays."""
    own = type(module)
    original = getattr(own, name)
    module.__class__ = type(f"Broken{own.__name__}", (own,), {name: functools.wraps(original)(wrap(original))})


def cache_in(arguments: dict[str, Any]) -> tuple[str, Cache] | None:
    """The cache under whatever name it has, once something is stored."""
    found = [(name, value) for name, value in arguments.items() if isinstance(value, Cache)]
    return found[0] if found and found[0][1].layers and found[0][1].layers[0].get_seq_length() else None


def decodes(arguments: dict[str, Any]) -> bool:
    return cache_in(arguments) is not None and arguments["inputs_embeds"].shape[1] == 1


def cache_unseen(model: Any) -> None:
    """What was noted on the cache is not found again: the hooks of transformers 5.24 did not know its new name."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            found = cache_in(kwargs)
            if found is None:
                return original(self, *args, **kwargs)
            name, cache = found
            plain = DynamicCache()
            plain.layers = cache.layers
            output = original(self, *args, **{**kwargs, name: plain})
            output[name] = cache
            return output

        return call

    override(adapter_for(model).text_model, "__call__", wrap)


def without(model: Any, argument: str, when: Callable[[dict[str, Any]], bool]) -> None:
    """The text model does not get an argument that the runtime gives it."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return original(self, *args, **({**kwargs, argument: None} if when(kwargs) else kwargs))

        return forward

    override(adapter_for(model).text_model, "forward", wrap)


def positions_lost(model: Any) -> None:
    without(model, "position_ids", decodes)


def mask_lost(model: Any, when: Callable[[dict[str, Any], int], bool] = lambda kwargs, new: new == 1) -> None:
    """The attention of no decoder layer gets the mask that the runtime gives the layer."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(self: nn.Module, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            lost = {"attention_mask": None} if when(kwargs, hidden_states.shape[1]) else {}
            return original(self, hidden_states, *args, **{**kwargs, **lost})

        return forward

    for layer in adapter_for(model).decoder_layers:
        override(layer.self_attn, "forward", wrap)


def mask_lost_in_the_second_turn(model: Any) -> None:
    mask_lost(model, lambda kwargs, new: cache_in(kwargs) is not None and new > 1)


def mask_lost_in_the_prefill(model: Any) -> None:
    mask_lost(model, lambda kwargs, new: cache_in(kwargs) is None and new > 1)


def layer_skipped(model: Any) -> None:
    """In decoding, one layer behind the cut works with what it had before the runtime changed it."""
    given: dict[str, Any] = {}

    def keep(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            given.update(kwargs)
            return original(self, *args, **kwargs)

        return call

    def use(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(self: nn.Module, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            changed = ("attention_mask", "position_ids", "position_embeddings") if hidden_states.shape[1] == 1 else ()
            return original(self, hidden_states, **{**kwargs, **{name: given[name] for name in changed}})

        return forward

    layer = adapter_for(model).decoder_layers[3]
    override(layer, "__call__", keep)
    override(layer, "forward", use)


def lengths_miscounted(model: Any) -> None:
    """A pruned cache tells one token too few."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = original(self, *args, **kwargs)
            found = cache_in(dict(output))
            if found is not None and found[1].layers[0].get_seq_length() != found[1].get_seq_length():
                own = functools.partial(type(found[1]).get_seq_length, found[1])
                found[1].get_seq_length = lambda layer_idx=0: own(layer_idx) - 1  # type: ignore[method-assign]
            return output

        return call

    override(adapter_for(model).text_model, "__call__", wrap)


def it_raises(model: Any) -> None:
    """In decoding on a pruned cache."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            found = cache_in(kwargs)
            if found is not None and len({layer.get_seq_length() for layer in found[1].layers}) > 1:
                raise vlmprune.UserError("layers disagree\nand more")
            return original(self, *args, **kwargs)

        return forward

    override(adapter_for(model).text_model, "forward", wrap)


BREAKAGES = {
    "cache_unseen": (cache_unseen, ["divprune:0.5, original positions, a batch", "compact positions, one prompt"]),
    "positions_lost": (positions_lost, ["divprune:0.5, compact positions, one prompt"]),
    "mask_lost": (mask_lost, ["a batch with padding"]),
    "mask_lost_in_the_second_turn": (mask_lost_in_the_second_turn, ["a second turn"]),
    "mask_lost_in_the_prefill": (mask_lost_in_the_prefill, ["a batch with padding"]),
    "layer_skipped": (layer_skipped, ["fastv@2:0.5, compact positions, one prompt"]),
    "lengths_miscounted": (lengths_miscounted, ["divprune:0.5, original positions, a batch with padding, a second"]),
    "it_raises": (it_raises, ["fastv@2:0.5, original positions, one prompt"]),
}  # fmt: skip


@pytest.mark.parametrize("checks", [unchecked, nullcontext], ids=["checks off", "checks on"])
@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_runtime_fails_a_proof(name: str, checks: Any) -> None:
    model = FAMILIES["llava"].build()
    damage, noticed = BREAKAGES[name]
    damage(model)
    with checks():
        lines, proven = verdict(model)
    assert not proven
    for case in noticed:
        assert any(case in line for line in failing(lines)), f"{case} did not notice"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_a_cache_that_is_not_seen_on_other_families(family: str) -> None:
    model = FAMILIES[family].build()
    cache_unseen(model)
    with unchecked():
        assert not verdict(model, family)[1]


def test_a_proof_that_raises_is_a_line() -> None:
    model = FAMILIES["llava"].build()
    it_raises(model)
    diagnosis = examine("x", model, prompt(FAMILIES["llava"], [[0]]))
    assert "one prompt: FAILS: UserError: layers disagree\n" in diagnosis.text and not diagnosis.sound
    # ... and a UserError after the prefill is no refusal of a method
    assert "  fastv        BREAKS: UserError: layers disagree\n" in diagnosis.text
    assert "  divprune     works: " in diagnosis.text and "no: layers disagree" not in diagnosis.text
    facts = json.loads(json.dumps(diagnosis.facts()))
    assert facts["sound"] is False and {*facts["methods"]} == {*vlmprune.METHODS}
    assert facts["methods"]["fastv"] == {"status": "breaks", "says": "UserError: layers disagree"}
    assert facts["methods"]["divprune"]["status"] == "works" and "decoder layers" in str(facts["model_lines"])
    assert any("FAILS" in line for line in facts["proof_lines"])


@pytest.mark.parametrize("checks", [unchecked, nullcontext], ids=["checks off", "checks on"])
def test_methods_break_on_a_broken_runtime(checks: Any) -> None:
    model = FAMILIES["llava"].build()
    cache_unseen(model)
    adapter = adapter_for(model)
    with checks():
        tried = try_methods(adapter, padded_batch(adapter, prompt(FAMILIES["llava"], [[0]])))
    assert [one.spec for one in tried] == sorted(vlmprune.METHODS)
    whole = [one for one in tried if re.match(r"(\d+) -> \1 tokens", one.says)]  # EVS cuts videos alone
    assert len(whole) <= 1 and all(one.status == BREAKS for one in tried if one not in whole)


def test_keep_1_must_be_bit_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llava"].build()
    original = vlmprune.prune

    @contextmanager
    def nudging(*args: Any, **options: Any) -> Iterator[Any]:
        handle = model.lm_head.register_forward_hook(lambda module, args, output: output * (1 + 1e-6))
        with original(*args, **options) as session:
            yield session
        handle.remove()

    monkeypatch.setattr(vlmprune, "prune", nudging, raising=False)
    lines, proven = verdict(model)
    names = [line.partition(":")[0].strip() for line in failing(lines)]
    assert names == [f"keep 1.0, {asked}, and a second turn" for asked in ("one prompt", "a batch with padding")]
    assert "DIFFERS from vanilla" in failing(lines)[0] and not proven


def test_a_run_that_prunes_nothing_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = FAMILIES["llava"].build(), vlmprune.prune
    monkeypatch.setattr(vlmprune, "prune", lambda model, spec, **_: original(model, "divprune:1.0"), raising=False)
    lines, proven = verdict(model)
    assert not proven and "nothing was pruned" in failing(lines)[0]


def test_a_model_that_cannot_answer_a_batch() -> None:
    """What the unpruned model cannot do is not asked of the pruned one, but one prompt it must answer."""
    model = FAMILIES["llava"].build()

    def refuse(limit: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
                if len(kwargs["inputs_embeds"]) >= limit:
                    raise NotImplementedError(f"a batch of {limit}")
                return original(self, *args, **kwargs)

            return forward

        return wrap

    override(adapter_for(model).text_model, "forward", refuse(2))
    lines, proven = verdict(model)
    assert proven and "  a batch with padding: no proof, the unpruned model fails: NotImplementedError" in str(lines)
    assert any("one prompt, a second turn: equals" in line for line in lines)
    override(adapter_for(model).text_model, "forward", refuse(1))
    lines, proven = verdict(model)
    assert not proven and "  one prompt: no proof, the unpruned model fails" in str(lines)
    diagnosis = examine("x", model, prompt(FAMILIES["llava"], [[0]]))
    assert "a sample picture: pruning it with random:0.5 FAILS: NotImplementedError" in diagnosis.text
    assert not diagnosis.sound


def test_the_command_line_fails_on_a_broken_runtime(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlmprune import doctor

    original = doctor.load_model

    def load(name: str) -> Any:
        loaded = original(name)
        cache_unseen(loaded.model)
        return loaded

    monkeypatch.setattr(doctor, "load_model", load)
    with unchecked():
        assert cli.main(["doctor", "llava"]) == 1
    assert "BREAKS" in (text := capsys.readouterr().out) and "DIFFERS from the masking oracle" in text


# ---------------------------------------------------------------- what is asked


def test_the_batch_is_padded_and_ragged() -> None:
    for family in ("llava", "qwen2_5_vl", "smolvlm", "gemma3", "minicpmv4_6"):
        model, inputs = FAMILIES[family].build(), prompt(FAMILIES[family], [[0]])
        adapter = adapter_for(model)
        batch = padded_batch(adapter, inputs)
        length = inputs["input_ids"].shape[1]
        assert batch.padding == [length, 0] and batch.inputs["input_ids"].shape == (2, 2 * length)
        assert torch.equal(batch.inputs["input_ids"][0, length:], inputs["input_ids"][0])
        with vlmprune.prune(model, "divprune:0.5") as session, torch.no_grad():
            model(**batch.inputs)
        (before, after), (twice, left) = session.last.tokens
        assert twice == 2 * before and left == 2 * after, family


def test_what_is_generated() -> None:
    model, inputs = FAMILIES["llava"].build(), prompt(FAMILIES["llava"], [[0]])
    model.generation_config.suppress_tokens = None  # then it would make placeholders, which the second turn cannot take
    model.lm_head.weight.data[adapter_for(model).placeholder_ids["image"]] *= 100
    adapter = adapter_for(model)
    answer = generate(adapter, inputs)
    assert answer.tokens.shape == (1, TOKENS) and answer.logits.shape[:2] == (1, TOKENS)
    assert not torch.isin(answer.tokens, torch.tensor(list(adapter.placeholder_ids.values()))).any()
    talk = converse(adapter, padded_batch(adapter, inputs))
    assert len(talk.turns) == 2 and talk.said.shape == (2, TOKENS + 4 + TOKENS)


def test_a_wide_window_is_narrowed_for_the_proof() -> None:
    siglip = {"model_type": "siglip_vision_model", **TOWER, "image_size": 32, "vision_use_head": False}
    text = {"model_type": "gemma3_text", **GEMMA, **SLIDING, "sliding_window": 4096}
    model = builder(
        "Gemma3", siglip, text, image_token_index=IMAGE, boi_token_index=IMAGE_BEGIN, eoi_token_index=IMAGE_END,
        mm_tokens_per_image=16,
    )()  # fmt: skip
    adapter, inputs = adapter_for(model), prompt(FAMILIES["gemma3"], [[0]])
    asked = [ask(adapter, prompts(adapter, inputs)) for prompts in (one_prompt, padded_batch)]
    cases = [case for case in cases_of(adapter, asked) if case.window is not None]
    assert [case.positions for case in cases] == ["original", "compact"] and cases[0].window < 32
    for case in cases:
        assert "equals the masking oracle" in case.judge(adapter)
    attention = adapter.decoder_attention(0)
    assert adapter.text_config.sliding_window == attention.sliding_window == 4096
    assert narrower_window(adapter_for(FAMILIES["gemma3"].build()), padded_batch(adapter, inputs)) is None
    assert narrower_window(adapter_for(FAMILIES["llava"].build()), padded_batch(adapter, inputs)) is None
