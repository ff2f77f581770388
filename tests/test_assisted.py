"""Assisted decoding: whoever proposes candidates, a pruned model writes what it writes without them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from harness import built, extend, inputs_of
from tiny_folder import QUESTION_WORDS, _family_tokenizer, _tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.candidate_generator import (
    AssistedCandidateGenerator,
    CandidateGenerator,
    PromptLookupCandidateGenerator,
)

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.runtime.attributes import Attachments
from vlmprune.runtime.candidates import watch_candidates
from vlmprune.testing import FAMILIES, weights

METHODS = [  # before the LLM, inside, in stages, with a cut of the cache, merging in both places, fusing
    "divprune:0.3", "fastv@2:0.3", "pyramiddrop:0.4", "mustdrop:0.4", "visionzip:0.3", "sparsevlm:0.4", "hilo:0.3",
    "divprune:0.5 > mustdrop:0.5",
]  # fmt: skip
STEPS = 14
REPEATED = torch.tensor([[11, 12, 13, 14, 15, 11, 12]])  # so that looking up finds candidates at once
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def prompt_of(family: str, seed: int = 0) -> dict[str, Tensor]:
    return extend(family, inputs_of(family, [[0, 1]], seed=seed), REPEATED)


def write(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    return model.generate(**inputs, max_new_tokens=STEPS, **{"do_sample": False, **options})


@cache
def twin(family: str) -> Any:
    return FAMILIES[family].build()


@cache
def shallow(family: str) -> Any:
    model = FAMILIES[family].build()
    model.model.language_model.layers = model.model.language_model.layers[:2]
    return model


@cache
def text_model(vocabulary: int = weights.VOCABULARY) -> Any:
    config = LlamaConfig(**{**weights.TEXT, "vocab_size": vocabulary})
    return weights.strengthen(LlamaForCausalLM(config), 1)


def renumbered() -> Any:
    """A tokenizer of the same words under other ids."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{k}" for k in range(70)), *QUESTION_WORDS]
    return _tokenizer({word: k for k, word in enumerate(words)}, [])


def assistants(family: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {
        "lookup": {"prompt_lookup_num_tokens": 3},
        "as deep": {"assistant_model": twin(family)},
        "less deep": {"assistant_model": shallow(family)},
        "itself": {"assistant_model": built(family)},
    }
    if family == "llava":  # a language model takes no mm_token_type_ids
        found["text only"] = {"assistant_model": text_model()}
        own, theirs = _family_tokenizer(), renumbered()
        found["other tokenizer"] = {
            "assistant_model": text_model(len(theirs)), "tokenizer": own, "assistant_tokenizer": theirs,
        }  # fmt: skip
    return found


@every_method
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_every_assistant_leaves_the_answer_alone(family: str, method: str) -> None:
    model, inputs = built(family), prompt_of(family)
    with vlmprune.prune(model, method) as session:
        greedy = write(model, inputs)
        kept = session.last.kept
        for name, options in assistants(family).items():
            assert torch.equal(write(model, inputs, **options), greedy), name
            assert all(torch.equal(a, b) for a, b in zip(session.last.kept[0], kept[0], strict=True))


@pytest.mark.parametrize("method", ["fastv@2:0.3", "mustdrop:0.4"])
@pytest.mark.parametrize("other", METHODS)
def test_an_assistant_may_be_pruned_too(method: str, other: str) -> None:
    model, assistant, inputs = built("llava"), twin("llava"), prompt_of("llava")
    with vlmprune.prune(model, method), vlmprune.prune(assistant, other):
        assert torch.equal(write(model, inputs, assistant_model=assistant), write(model, inputs))


@pytest.mark.parametrize("schedule", ["constant", "heuristic", "heuristic_transient"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_schedules_of_assistants(schedule: str, count: int) -> None:
    model, assistant, inputs = built("llava"), copy.deepcopy(twin("llava")), prompt_of("llava")
    assistant.generation_config.num_assistant_tokens = count
    assistant.generation_config.num_assistant_tokens_schedule = schedule
    with vlmprune.prune(model, "mustdrop:0.4"):
        assert torch.equal(write(model, inputs, assistant_model=assistant), write(model, inputs))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "internvl", "smolvlm", "gemma3", "llava_next"])
def test_assistants_of_other_families(family: str) -> None:
    model, inputs = built(family), prompt_of(family)
    with vlmprune.prune(model, "mustdrop:0.4"):
        assert torch.equal(write(model, inputs, assistant_model=twin(family)), write(model, inputs))


class Scripted(CandidateGenerator):
    """Proposes tokens of a known answer, some of them wrong, and notes what it is asked and told.

    Attributes:
        wrong: how far behind the prompt the wrong ones stand.
    """

    def __init__(self, answer: Tensor, prompt: int, count: int, wrong: tuple[int, ...]) -> None:
        self.answer, self.count = answer.clone(), count
        for place in wrong:
            self.answer[0, prompt + place] = (self.answer[0, prompt + place] + 1) % 70
        self.log: list[Any] = []

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        self.log.append(("asked", input_ids.shape[1]))
        at = input_ids.shape[1]
        return torch.cat([input_ids, self.answer[:, at : min(at + self.count, self.answer.shape[1] - 1)]], 1), None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        self.log.append(("told", input_ids.shape[1], scores.shape[1], int(num_matches)))


WRONG: list[tuple[int, ...]] = [(), (0,), (1,), (2, 5), (0, 1, 2, 3)]


@every_method
@pytest.mark.parametrize("wrong", WRONG)
def test_candidates_right_and_wrong(method: str, wrong: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = built("llava"), prompt_of("llava")
    with monkeypatch.context() as patch:
        for count in (1, 2, 4):
            with vlmprune.prune(model, method):
                greedy = write(model, inputs)
            scripted = Scripted(greedy, inputs["input_ids"].shape[1], count, wrong)
            patch.setattr(model, "_get_candidate_generator", lambda **_: scripted, raising=False)  # noqa: B023
            with vlmprune.prune(model, method):
                assert torch.equal(write(model, inputs, prompt_lookup_num_tokens=count), greedy)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_generator_held_back_is_told_what_it_would_be_told(
    wrong: tuple[int, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the unpruned model, where the prefill may take candidates along: the same conversation with the generator."""
    model, inputs = built("llava"), prompt_of("llava")
    greedy, length = write(model, inputs), inputs["input_ids"].shape[1]
    logs = []
    for hold_back in (False, True):
        scripted = Scripted(greedy, length, count, wrong)
        monkeypatch.setattr(model, "_get_candidate_generator", lambda **_: scripted, raising=False)  # noqa: B023
        attached = Attachments()
        watch_candidates(attached, model, hold_back)
        assert torch.equal(write(model, inputs, prompt_lookup_num_tokens=3), greedy)
        attached.undo()
        logs.append(scripted.log)
        assert set(vars(scripted)) == {"answer", "count", "log"}  # nothing stays on it
    assert logs[0] == logs[1]


@pytest.mark.parametrize("source", ["as deep", "less deep", "text only"])
def test_an_assistant_held_back_goes_on_as_it_would(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of tokens it drafts, which it keeps for the next answer, and how often it is asked."""
    model, inputs, counts = built("llava"), prompt_of("llava"), []
    for hold_back in (False, True):
        assistant = copy.deepcopy(assistants("llava")[source]["assistant_model"])
        assistant.generation_config.num_assistant_tokens = 3
        assistant.generation_config.num_assistant_tokens_schedule = "heuristic"
        asked: list[int] = []
        original = AssistedCandidateGenerator.get_candidates

        def ask(self: Any, input_ids: Tensor, original: Callable[..., Any] = original, asked: Any = asked) -> Any:
            asked.append(input_ids.shape[1])
            return original(self, input_ids)

        with monkeypatch.context() as patch:
            patch.setattr(AssistedCandidateGenerator, "get_candidates", ask)
            attached = Attachments()
            watch_candidates(attached, model, hold_back)
            write(model, inputs, assistant_model=assistant)
            attached.undo()
        counts.append((asked, assistant.generation_config.num_assistant_tokens))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("method", ["divprune:0.3", "mustdrop:0.4"])
def test_sampling_with_an_assistant(method: str) -> None:
    """Where one token has all the probability, speculative sampling must find the greedy answer."""
    model, inputs = built("llava"), prompt_of("llava")
    with vlmprune.prune(model, method):
        greedy = write(model, inputs)
        for options in ({"assistant_model": twin("llava")}, {"prompt_lookup_num_tokens": 3}):
            sampled = write(model, inputs, do_sample=True, temperature=1e-4, **options)
            assert torch.equal(sampled, greedy)


@every_method
def test_a_generator_that_reads_pruned_states_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = built("llava"), prompt_of("llava")

    class Reader(CandidateGenerator):
        """Like those of multi-token prediction and DFlash."""

        requires_model_outputs = True
        model_kwargs_overrides = {"output_hidden_states": True}

        def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
            return input_ids, None

    monkeypatch.setattr(model, "_get_candidate_generator", lambda **_: Reader(), raising=False)
    with vlmprune.prune(model, method), pytest.raises(UserError, match="hidden state of every token"):
        write(model, inputs, prompt_lookup_num_tokens=3)
    plain = write(model, inputs)
    with vlmprune.prune(model, method.partition(":")[0], keep=1.0):
        assert torch.equal(write(model, inputs, prompt_lookup_num_tokens=3), plain)  # nothing was pruned


def test_nothing_stays_on_the_model() -> None:
    model, inputs = built("llava"), prompt_of("llava")
    before = PromptLookupCandidateGenerator.get_candidates
    with vlmprune.prune(model, "mustdrop:0.4"):
        write(model, inputs, prompt_lookup_num_tokens=3)
    assert "_get_candidate_generator" not in model.__dict__
    assert PromptLookupCandidateGenerator.get_candidates is before
