"""Models without a language-model head, retrieval models, wrappers; and refusals that say what to pass instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import vlmprune
from vlmprune import UserError
from vlmprune.models import adapter_for
from vlmprune.models.generic import GenericAdapter
from vlmprune.runtime.oracle import masking_oracle
from vlmprune.testing import FAMILIES, Family, alone, image_numbers, prompt
from vlmprune.testing.generic import USUAL
from vlmprune.testing.weights import strengthen

TOLERANCE = 2e-4
SPEC = "divprune:0.5 > fastv@2:0.5"
RAGGED: list[list[int | None]] = [[0, 1], [2]]
SINGLE: list[list[int | None]] = [[0], [2]]  # ColQwen2 takes one page a sample
ALL = {**FAMILIES, **USUAL}
headless = pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "mistral3"])
heads = pytest.mark.parametrize("name", ["paligemma", "qwen2_vl"])


def hidden_oracle(model: Any, inputs: dict[str, Tensor], report: Any, image: Tensor) -> Tensor:
    """[B, P, D] what the text model must have returned: the masking oracle's hidden states at the kept columns."""
    seen: list[Tensor] = []
    text = adapter_for(model).text_model
    handle = text.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    try:
        masking_oracle(model, inputs, inputs["input_ids"][:, :1], report, image=image)
    finally:
        handle.remove()
    columns = report.columns.clamp(min=0)[..., None]
    return seen[0].gather(1, columns.expand(-1, -1, seen[0].shape[-1]))


def largest(a: Tensor, b: Tensor, columns: Tensor) -> float:
    return float((a - b)[columns >= 0].abs().max())


@torch.no_grad()
@headless
def test_a_model_without_a_head(name: str) -> None:
    family = ALL[name]
    whole, inputs = family.build(), prompt(family, RAGGED)
    model = whole.model
    expected = model(**inputs).last_hidden_state
    with vlmprune.prune(model, "divprune", keep=1.0):
        assert torch.equal(expected, model(**inputs).last_hidden_state)
    with vlmprune.prune(model, SPEC, positions="original") as session:
        found = model(**inputs).last_hidden_state
        report = session.last
        for row in range(2):
            single = model(**alone(family, RAGGED, row)).last_hidden_state
            assert float((single[0] - found[row, -single.shape[1] :]).abs().max()) < TOLERANCE
    slots = [sum(family.slots(seed) for seed in sample if seed is not None) for sample in RAGGED]
    assert [before for before, _ in report.tokens] == slots and all(4 * a <= b + 8 for b, a in report.tokens)
    assert largest(found, hidden_oracle(whole, inputs, report, image_numbers(family, RAGGED)), report.columns) < 2e-4
    assert torch.equal(expected, model(**inputs).last_hidden_state)


def test_what_auto_model_makes() -> None:
    model = transformers.AutoModel.from_config(FAMILIES["llava"].build().config)
    assert type(model) is transformers.LlavaModel
    with vlmprune.prune(model, "hiprune", keep=9) as session:
        model(**prompt(FAMILIES["llava"], RAGGED))
    assert session.last.tokens == [(72, 18), (36, 9)]


# ---------------------------------------------------------------- retrieval models and other heads


def retriever(name: str) -> tuple[Any, dict[str, Tensor]]:
    """ColPali or ColQwen2, and a batch of pages as its processor makes it."""
    kind = {"paligemma": "ColPali", "qwen2_vl": "ColQwen2"}[name]
    config = getattr(transformers, f"{kind}Config")(vlm_config=FAMILIES[name].build().config, embedding_dim=16)
    build: Callable[..., Any] = getattr(transformers, f"{kind}ForRetrieval")
    model, inputs = build(config), prompt(FAMILIES[name], SINGLE)
    model.generation_config = transformers.GenerationConfig()
    inputs.pop("mm_token_type_ids", None)
    if name == "qwen2_vl":
        rows = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist())
        inputs["pixel_values"] = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return strengthen(model), inputs


def flipped(values: Tensor, mask: Tensor) -> Tensor:
    """Padding from the left to the right."""
    return torch.stack([torch.cat([row[real == 1], row[real == 0]]) for row, real in zip(values, mask, strict=True)])


@torch.no_grad()
@heads
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_retrieval_model(name: str, side: str) -> None:
    """Its embeddings are those of the hidden states that the oracle gives; the mask of the prompt's length serves."""
    model, inputs = retriever(name)
    if side == "right":
        mask = inputs["attention_mask"]
        inputs = {k: flipped(v, mask) if v.shape == mask.shape else v for k, v in inputs.items()}
    expected = model(**inputs).embeddings
    with vlmprune.prune(model, "divprune", keep=1.0):
        assert torch.equal(expected, model(**inputs).embeddings)
    hidden: list[Tensor] = []
    with vlmprune.prune(model, SPEC, positions="original") as session:
        handle = adapter_for(model).text_model.register_forward_hook(lambda m, a, out: hidden.append(out[0]))
        found, report = model(**inputs).embeddings, session.last
        handle.remove()
    columns = report.columns
    assert found.shape[:2] == columns.shape and [after < before for before, after in report.tokens] == [True, True]
    by_hand = model.embedding_proj_layer(hidden[0])
    by_hand = by_hand / by_hand.norm(dim=-1, keepdim=True) * (columns >= 0)[..., None]
    assert float((found - by_hand).abs().max()) < 1e-6
    assert torch.equal(expected, model(**inputs).embeddings)


@torch.no_grad()
def test_a_retrieval_model_equals_the_oracle() -> None:
    """The hidden states behind the embeddings, by a language model around the same multimodal model."""
    model, inputs = retriever("paligemma")
    twin = FAMILIES["paligemma"].build()
    twin.model = model.vlm
    with vlmprune.prune(model, SPEC, positions="original") as session:
        found = model(**inputs).embeddings
    image = image_numbers(FAMILIES["paligemma"], SINGLE)
    expected = model.embedding_proj_layer(hidden_oracle(twin, inputs, session.last, image))
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert largest(found, expected, session.last.columns) < TOLERANCE


@torch.no_grad()
def test_queries_of_a_retrieval_model_pass_untouched() -> None:
    model, _ = retriever("qwen2_vl")
    query = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "attention_mask": torch.ones(1, 4).long()}
    expected = model(**query).embeddings
    with vlmprune.prune(model, "divprune", keep=0.5):
        assert torch.equal(expected, model(**query).embeddings)


@torch.no_grad()
def test_a_head_that_picks_a_token_and_one_that_mixes_them() -> None:
    config = FAMILIES["gemma3"].build().config
    config.num_labels = 3
    model = transformers.Gemma3ForSequenceClassification(config)
    model.generation_config = transformers.GenerationConfig()
    model, inputs = strengthen(model), prompt(FAMILIES["gemma3"], RAGGED)
    with vlmprune.prune(model, SPEC) as session:
        found = model(**inputs).logits
    with vlmprune.prune(model.model, SPEC):
        last = model.model(**inputs).last_hidden_state[:, -1]
    assert session.last.tokens[0][1] < session.last.tokens[0][0]
    assert float((found - model.score(last)).abs().max()) < 1e-6

    class Mean(transformers.ColPaliForRetrieval):  # a pooled embedding
        def forward(self, **inputs: Any) -> Any:
            output = super().forward(**inputs)
            output.embeddings = output.embeddings.mean(1)
            return output

    page, inputs = retriever("paligemma")
    page.__class__ = Mean
    with vlmprune.prune(page, SPEC), pytest.raises(UserError, match=r"mixes tokens.*prune the multimodal model in it"):
        page(**inputs)
    with vlmprune.prune(page.vlm, SPEC):  # the hint
        assert page.vlm(**inputs).last_hidden_state.shape[1] < inputs["input_ids"].shape[1]


# ---------------------------------------------------------------- wrappers


class Held(nn.Module):
    """As DistributedDataParallel and engines do: what it runs is `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize("wrap", [nn.DataParallel, Held, lambda model: Held(nn.DataParallel(model))])
def test_wrappers_are_looked_through(wrap: Any) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(), prompt(family, RAGGED)
    wrapped = wrap(model)
    with vlmprune.prune(model, SPEC):
        expected = model(**inputs).logits
    with vlmprune.prune(wrapped, SPEC) as session:
        found = wrapped(**inputs).logits
    assert torch.equal(expected, found) and session.last.tokens == [(72, 18), (36, 9)]


def test_copies_on_several_devices_are_refused() -> None:
    model = nn.DataParallel(FAMILIES["llava"].build())
    model.device_ids = [0, 1]
    with pytest.raises(UserError, match=r"copies are not pruned: prune x\.module"):
        vlmprune.prune(model, "divprune", keep=0.5)
    assert adapter_for(model.module).model is model.module  # the hint


@torch.no_grad()
def test_distributed_data_parallel(tmp_path: Any) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(), prompt(family, RAGGED)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with vlmprune.prune(wrapped, "divprune", keep=0.5) as session:
            wrapped(**inputs)
        assert session.last.tokens == [(72, 36), (36, 18)]
    finally:
        torch.distributed.destroy_process_group()


@torch.no_grad()
def test_a_pipeline() -> None:
    """Anything that is no module and holds one as `model`."""
    family = FAMILIES["llava"]
    pipe = transformers.Pipeline.__new__(transformers.ImageTextToTextPipeline)
    pipe.model = family.build()
    with vlmprune.prune(pipe, "divprune", keep=0.5) as session:
        pipe.model.generate(**prompt(family, RAGGED), max_new_tokens=2)
    assert session.last.tokens == [(72, 36), (36, 18)] and adapter_for(pipe).model is pipe.model


class Own(nn.Module):
    """A user's module around models."""

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(models)

    def forward(self, **inputs: Any) -> Any:
        return self.parts["vlm"](**inputs)


@torch.no_grad()
def test_a_module_of_the_user_s_own_names_the_model_in_it() -> None:
    family = FAMILIES["llava"]
    model = family.build()
    own = Own(vlm=model, other=nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"cannot prune a Own, .*: pass x\.(\S+) instead") as caught:
        vlmprune.prune(own, "divprune", keep=0.5)
    found = re.search(r"pass x\.(\S+) instead", str(caught.value))
    assert found is not None and own.get_submodule(found[1]) is model
    with vlmprune.prune(own.get_submodule(found[1]), "divprune", keep=0.5) as session:
        own(**prompt(family, RAGGED))
    assert session.last.tokens == [(72, 36), (36, 18)]
    with pytest.raises(UserError, match=r"pass one of x\.parts\.a, x\.parts\.b\."):
        vlmprune.prune(Own(a=model, b=family.build()), "divprune", keep=0.5)


def test_a_variant_that_neither_adapter_takes() -> None:
    family: Family = FAMILIES["llava"]
    model = family.build()
    model.config.vision_feature_layer = [-2, -1]  # not what LLaVA's adapter knows
    assert type(adapter_for(model)) is GenericAdapter
    model.model.language_model.layers[0].self_attn.is_causal = False
    with pytest.raises(UserError, match=r"'llava', a variant .* does not know\): decoder layer 0"):
        vlmprune.prune(model, "divprune", keep=0.5)
