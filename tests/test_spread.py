"""Hidden states, attention maps and logits of a pruned prefill, laid back over the prompt (`RunReport.spread`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, counted, inputs_of, largest, policies
from torch import Tensor
from versions import behind, cache_of

import vlmprune
from vlmprune.core.report import RunReport
from vlmprune.core.spread import laid
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import is_recurrent, masking_oracle
from vlmprune.testing import FAMILIES, image_numbers

CUTS = "divprune:0.5 > fastv@2:0.3"
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
DROPPING = [key for key, family in FAMILIES.items() if not family.recurrent]  # the masking oracle has no recurrence


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def ran(family: str, spec: str, samples: Any = RAGGED) -> tuple[Any, RunReport]:
    model = built(family, "eager")
    with vlmprune.prune(model, spec) as session, torch.no_grad():
        return model(**inputs_of(family, samples), **EVERYTHING), session.last


def generated(family: str, spec: str, **options: Any) -> tuple[Any, RunReport]:
    model = built(family, "eager")
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, **EVERYTHING, **options}
    with vlmprune.prune(model, spec) as session:
        return model.generate(**inputs_of(family, RAGGED), **settings), session.last


def there(values: Tensor) -> Tensor:
    """[B, S] where something stands, of states [B, S, D] that have all or nothing of a token."""
    missing = values.isnan()
    assert torch.equal(missing.any(-1), missing.all(-1))
    return ~missing.any(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_gives_what_was_given(family: str) -> None:
    out, report = ran(family, "divprune:1.0", [[0, 1]])
    for values in (out.hidden_states, out.attentions):
        assert all(torch.equal(whole, value) for whole, value in zip(report.spread(values), values, strict=True))
    assert torch.equal(report.spread(out.logits), out.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_stand_at_the_columns_that_were_kept(family: str) -> None:
    out, report = ran(family, CUTS)
    ids, real = inputs_of(family, RAGGED)["input_ids"], inputs_of(family, RAGGED)["attention_mask"].bool()
    numbers, states = image_numbers(FAMILIES[family], RAGGED), report.spread(out.hidden_states)
    depth = len(adapter_for(built(family, "eager")).decoder_layers)
    assert len(states) == depth + 1
    for entry, (whole, given) in enumerate(zip(states, out.hidden_states, strict=True)):
        kept = report.stages[entry > 2][1]  # layer 2 puts out entry 3
        expected = real & (numbers < 0)
        for row, images in enumerate(kept):
            for number, slots in enumerate(images):
                expected[row, (numbers[row] == number).nonzero().squeeze(1)[slots]] = True
        assert torch.equal(there(whole), expected) and whole.shape == (*ids.shape, given.shape[-1])
        for row, columns in enumerate(report.columns_of(max(entry - 1, 0))):
            assert torch.equal(whole[row, columns[columns >= 0]], given[row, columns >= 0])
    assert torch.equal(report.spread(out.logits, fill=0.0)[~there(states[-1])].abs().sum(), torch.tensor(0.0))
    assert torch.equal(report.spread(out.hidden_states[1], layer=0, fill=-1.0), states[1].nan_to_num(nan=-1.0))
    assert torch.equal(report.columns, report.columns_of(-1)) and torch.equal(report.columns, report.columns_of(2))


@pytest.mark.parametrize("family", DROPPING)
def test_states_equal_the_oracles_at_those_columns(family: str) -> None:
    """An uncached forward of the whole prompt, in which dropped columns are masked."""
    model, inputs = built(family, "eager"), inputs_of(family, RAGGED)
    assert not is_recurrent(model)
    with vlmprune.prune(model, CUTS) as session, torch.no_grad():
        out = model(**counted(family, inputs), **EVERYTHING)
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in adapter_for(model).decoder_layers
    ]
    numbers, tokens = image_numbers(FAMILIES[family], RAGGED), torch.zeros(2, 1, dtype=torch.long)
    masking_oracle(model, inputs, tokens, session.last, policies(CUTS, family), numbers)
    for handle in handles:
        handle.remove()
    states = session.last.spread(out.hidden_states)
    for output, whole in zip(seen[:-1], states[1:-1], strict=True):  # the last entry is behind the norm
        assert largest(output[there(whole)], whole[there(whole)]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_maps(family: str) -> None:
    out, report = ran(family, CUTS)
    layers = adapter_for(built(family, "eager")).attention_layers
    length = inputs_of(family, RAGGED)["input_ids"].shape[1]
    for layer, whole, given in zip(layers, report.spread(out.attentions), out.attentions, strict=True):
        assert whole.shape == (*given.shape[:2], length, length)
        for row, columns in enumerate(report.columns_of(layer)):
            real = columns >= 0
            at = columns[real]
            assert torch.equal(whole[row][:, at][:, :, at], given[row][:, real][:, :, real])
            assert int((~whole[row, 0].isnan()).sum()) == len(at) ** 2
            assert largest(whole[row][:, at].nansum(-1), torch.ones(1)) < 1e-5
        assert torch.equal(report.spread(given, layer=layer, fill=0.0), whole.nan_to_num(nan=0.0))


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static", "disable_compile": True}, {"num_beams": 2}])
def test_the_prefill_and_the_steps_of_generate(options: dict[str, Any]) -> None:
    out, report = generated("llava", CUTS, **options)
    one, first = ran("llava", CUTS)
    for step, alone in (
        (report.spread(out.hidden_states[0]), first.spread(one.hidden_states)),
        (report.spread(out.attentions[0]), first.spread(one.attentions)),
    ):
        for whole, expected in zip(step, alone, strict=True):
            beams = expected.repeat_interleave(len(whole) // len(expected), dim=0)
            assert torch.equal(whole.isnan(), beams.isnan())
            assert largest(whole.nan_to_num(), beams.nan_to_num()) < TOLERANCE
    length = inputs_of("llava", RAGGED)["input_ids"].shape[1]
    for layer, (whole, given) in enumerate(zip(report.spread(out.attentions[1]), out.attentions[1], strict=True)):
        kept = report.columns_of(layer).shape[1]
        assert whole.shape[2:] == (1, length + given.shape[3] - kept)
        assert torch.equal(whole[..., length:], given[..., kept:])
        assert torch.equal(whole[..., :length].isnan(), report.spread(out.attentions[0])[layer][:, :, -1:].isnan())
    with pytest.raises(vlmprune.UserError, match="no later step"):
        report.spread(out.hidden_states[1])
    with pytest.raises(vlmprune.UserError, match=r"give one of them, \[0\]"):
        report.spread(out.hidden_states)


def test_steps_where_caches_were_cut_behind_the_prompt() -> None:
    out, report = generated("llava", "mustdrop:0.3")
    assert report.trimmed
    for layer, whole in enumerate(report.spread(out.attentions[1])):
        columns = report.columns_of(report.trimmed.get(layer, layer))
        for row in range(2):
            real = columns[row][columns[row] >= 0]
            assert set((~whole[row, 0, 0].isnan()).nonzero().squeeze(1).tolist()) >= set(real.tolist())
        assert largest(whole.nansum(-1), torch.ones(1)) < 1e-5


@pytest.mark.parametrize("name", ["visionzip", "tome", "sparsevlm", "autoprune", "pool", "prumerge", "downsample"])
def test_merged_tokens_stand_at_their_anchors(name: str) -> None:
    model, inputs = built("llava", "eager"), inputs_of("llava", RAGGED)
    numbers = image_numbers(FAMILIES["llava"], RAGGED)
    with vlmprune.prune(model, name, keep=0.3) as session, torch.no_grad():
        out = model(**inputs, **EVERYTHING)
    report, whole = session.last, session.last.spread(out.logits)
    for row, images in enumerate(report.kept):
        for number, slots in enumerate(images):
            columns = (numbers[row] == number).nonzero().squeeze(1)
            assert columns[there(whole)[row, columns]].tolist() == columns[slots].tolist()
        text = inputs["attention_mask"][row].bool() & (numbers[row] < 0)
        assert bool(there(whole)[row, text].all())
    without_slot = report.counts[-1][1][0] - len(torch.cat(report.kept[0]))
    assert (without_slot > 0) == (name == "visionzip")  # its CLS tokens
    assert int(there(whole)[0].sum()) == int((report.columns[0] >= 0).sum()) - without_slot


def test_the_first_of_two_at_one_column() -> None:
    values, columns = torch.arange(8.0).view(1, 4, 2), torch.tensor([[3, 1, 3, -1]])
    expected = torch.tensor([[[-1.0, -1.0], [2.0, 3.0], [-1.0, -1.0], [0.0, 1.0], [-1.0, -1.0]]])
    assert torch.equal(laid(values, columns, 5, 1, -1.0), expected)


def test_what_is_not_of_the_run_is_told() -> None:
    out, report = ran("llava", CUTS)
    sliding, windows = generated("gemma3", CUTS)
    for call, sentence in (
        (lambda: RunReport().columns_of(0), "No prompt with images"),
        (lambda: report.columns_of(9), "no decoder layer 9"),
        (lambda: report.spread(out.logits[:, -1:]), "no logits_to_keep"),
        (lambda: report.spread(out.hidden_states[1]), "51 tokens were given, but decoder layer 3 ran on 25"),
        (lambda: report.spread(out.logits[:1]), "1 rows were given"),
        (lambda: report.spread(()), "only eager attention"),
        (lambda: report.spread(out.hidden_states[:3]), "neither the hidden_states nor the attentions"),
        (lambda: report.spread(out.logits[0]), "of 2 axes cannot be spread"),
        (lambda: report.spread(out.hidden_states, layer=1), "with a single tensor"),
        (lambda: report.spread(out.attentions[2], layer=0), "25 keys were given"),
        (lambda: windows.spread(sliding.attentions[1]), "has a sliding window"),
    ):
        with pytest.raises(vlmprune.UserError, match=sentence):
            call()


def test_a_second_turn_counts_its_own_columns() -> None:
    model, inputs = built("llava", "eager"), inputs_of("llava", [[0]])
    more = inputs_of("llava", [[1]], seed=50)
    with vlmprune.prune(model, CUTS) as session, torch.no_grad():
        first = model(**inputs, use_cache=True)
        mask = torch.cat([inputs["attention_mask"], more["attention_mask"]], dim=1)
        out = model(**{**more, "attention_mask": mask}, **behind(cache_of(first)), **EVERYTHING)
        states = session.last.spread(out.hidden_states)
        assert states[-1].shape[1] == more["input_ids"].shape[1]
        with pytest.raises(vlmprune.UserError, match="after an older cache"):
            session.last.spread(out.attentions)
