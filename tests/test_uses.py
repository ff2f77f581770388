"""Uses that are easily forgotten: copies, threads, images merged elsewhere, hidden slots, hand-written loops."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, families, generate, inputs_of, largest, oracle
from harness_embeddings import merged
from transformers.cache_utils import DynamicCache
from versions import behind, cache_of

import vlmprune
from vlmprune import UserError
from vlmprune.core.report import RunReport
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import is_cut
from vlmprune.testing import FAMILIES
from vlmprune.testing.weights import IMAGE

SPECS = {
    "before": "divprune:0.3", "inside": "fastv@2:0.3", "both": "hiprune:0.5 > fastv@2:0.5", "trims": "mustdrop:0.5",
    "fuses": "fuse(divprune):0.3", "inside the encoder": "tome(inside=True):0.4",
}  # fmt: skip
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def saved(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "EMA": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@specs
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_copy_made_inside_the_block_is_a_plain_model(family: str, spec: str, copied: Any) -> None:
    if "inside=True" in spec and family != "llava":
        pytest.skip("merging inside the encoder is for towers with a slot for each patch")
    # transformers' own hooks, which it installs at first use, cannot be pickled: the model has not run yet
    model, inputs = FAMILIES[family].build("sdpa"), inputs_of(family, RAGGED)
    vanilla = generate(built(family), inputs)
    with vlmprune.prune(model, spec):
        twin = copied(model)
        plain = generate(twin, inputs)
        pruned = generate(model, inputs)
        assert torch.equal(plain[1], vanilla[1])
        twin.get_output_embeddings().weight.data.zero_()  # it has weights of its own
        assert not generate(twin, inputs)[1].any()
        assert torch.equal(generate(model, inputs)[1], pruned[1])
        with vlmprune.prune(twin, spec):  # and can be pruned by itself, at the same time
            generate(twin, inputs)
    names = {name for module in twin.modules() for name in vars(module)}
    assert "__reduce_ex__" not in names and "_vlmprune_session" not in names
    assert all(not module._forward_pre_hooks for module in twin.modules())


def test_what_a_model_had_of_its_own_is_what_a_copy_has() -> None:
    model = copy.deepcopy(built("llava"))
    model.generate = own = lambda **inputs: "own"
    with vlmprune.prune(model, "divprune:0.3"):
        assert copy.deepcopy(model).generate is own


@specs
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_two_threads_on_one_model(family: str, spec: str) -> None:
    if "inside=True" in spec and family != "llava":
        pytest.skip("merging inside the encoder is for towers with a slot for each patch")
    model = built(family)
    prompts = [inputs_of(family, samples, seed) for seed, samples in enumerate([[[0]], [[0, 1]], RAGGED])]
    with vlmprune.prune(model, spec) as session:
        alone = []
        for prompt in prompts:
            alone.append((generate(model, prompt), session.last.tokens))
        found: dict[tuple[int, int], Any] = {}

        def answer(number: int) -> None:
            for turn in range(3):
                found[number, turn] = generate(model, prompts[number]), session.last.tokens

        threads = [threading.Thread(target=answer, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3 * len(prompts)
    for (number, _), (answered, tokens) in found.items():
        assert torch.equal(answered[0], alone[number][0][0]) and torch.equal(answered[1], alone[number][0][1])
        assert tokens == alone[number][1]  # the report is the thread's own


@pytest.mark.parametrize("family", ["llava", "internvl", "llava_next"])
def test_images_merged_into_embeddings_are_refused(family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    embeds = merged(model, inputs)
    with vlmprune.prune(model, "divprune:0.3") as session:
        generate(model, inputs)
        with pytest.raises(UserError, match="image placeholders and no images that vlmprune sees"):
            model.generate(**text, inputs_embeds=embeds, max_new_tokens=2, do_sample=False)
        assert session.last == RunReport()  # and not that of the run before
        with pytest.raises(UserError, match="cannot tell whether these inputs_embeds hold images"):
            model(inputs_embeds=embeds, attention_mask=text["attention_mask"])
        with pytest.raises(UserError, match="image placeholders and no images"):
            model(**text)


def test_text_alone_passes_with_an_empty_report() -> None:
    model, inputs = built("llava"), inputs_of("llava", [[0]])
    text = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    plain = generate(model, text)
    embeds = model.get_input_embeddings()(text["input_ids"])
    with vlmprune.prune(model, "divprune:0.3") as session:
        generate(model, inputs)
        assert torch.equal(generate(model, text)[1], plain[1])
        assert session.last == RunReport()
        assert torch.equal(generate(model, {**text, "inputs_embeds": embeds})[1], plain[1])


@families
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_slots_that_the_mask_hides_are_outside_the_budget(family: str, positions: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    if is_cut(model):
        pytest.skip("the cutting oracle knows no hidden tokens")
    ids, mask = inputs["input_ids"], inputs["attention_mask"].clone()
    tokens = torch.tensor(list(adapter_for(model).placeholder_ids.values()))
    mask[0, torch.isin(ids[0], tokens).nonzero().squeeze(1)[1:4]] = 0
    inputs = {**inputs, "attention_mask": mask}
    try:
        generate(model, inputs)
    except RuntimeError:
        pytest.skip("transformers itself cannot hide a part of an image here")
    with vlmprune.prune(model, "divprune:0.6 > fastv@2:0.5", positions=positions) as session:
        written, logits = generate(model, inputs)
    assert not set(session.last.kept[0][0].tolist()) & {1, 2, 3}
    assert all(0 < kept < before for before, kept in session.last.tokens)
    expected = oracle(family, RAGGED, inputs, written, session.last, dict.fromkeys((0, 2), positions))
    assert largest(logits, expected) < TOLERANCE


def test_a_row_with_hardly_any_token() -> None:
    model, inputs = built("llava_next"), inputs_of("llava_next", RAGGED)
    mask = inputs["attention_mask"].clone()
    mask[0, :-2] = 0
    for positions in ("original", "compact"):
        with vlmprune.prune(model, "divprune:0.3", positions=positions):
            tokens, logits = generate(model, {**inputs, "attention_mask": mask})
        assert torch.isfinite(logits).all()
        vanilla = generate(model, {**inputs, "attention_mask": mask})
        assert torch.equal(tokens[:1], vanilla[0][:1]) and largest(logits[:1], vanilla[1][:1]) < TOLERANCE


def test_an_old_mask_beside_new_ids_is_refused() -> None:
    model, inputs = built("llava"), inputs_of("llava", [[0]])
    longer = torch.nn.functional.pad(inputs["attention_mask"], (3, 0), value=1)
    with vlmprune.prune(model, "divprune:0.3"), pytest.raises(UserError, match="The attention mask counts"):
        model(**{**inputs, "attention_mask": longer})


def test_a_cache_filled_outside_goes_on_where_it_is_known_to_be_whole() -> None:
    model = built("llava")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    whole = model(input_ids=ids).logits[:, -1]
    for evidence in ({"attention_mask": torch.ones(1, 6, dtype=torch.long)}, {"position_ids": torch.tensor([[4, 5]])}):
        cache = cache_of(model(input_ids=ids[:, :4], use_cache=True))
        with vlmprune.prune(model, "divprune:0.3"):
            found = model(input_ids=ids[:, 4:], **behind(cache), **evidence).logits[:, -1]
        assert largest(found, whole) < TOLERANCE
    cache = cache_of(model(input_ids=ids[:, :4], use_cache=True))
    with vlmprune.prune(model, "divprune:0.3"), pytest.raises(UserError, match="nothing tells whether these are all"):
        model(input_ids=ids[:, 4:], attention_mask=None, **behind(cache))


def test_a_pruned_cache_rebuilt_by_hand_is_refused() -> None:
    model, inputs = built("llava"), inputs_of("llava", [[0]])
    with vlmprune.prune(model, "fastv@2:0.3"):
        cache, fresh = cache_of(model(**inputs, use_cache=True)), DynamicCache()
        for number, layer in enumerate(cache.layers):
            fresh.update(layer.keys, layer.values, number)
        with pytest.raises(UserError, match="at one decoder layer"):
            model(input_ids=torch.tensor([[5]]), **behind(fresh))


def test_placeholders_that_were_generated_are_text() -> None:
    model, inputs = built("llava"), inputs_of("llava", [[0]])
    with vlmprune.prune(model, "divprune:0.3"):
        cache = cache_of(model(**inputs, use_cache=True))
        assert torch.isfinite(model(input_ids=torch.tensor([[IMAGE]]), **behind(cache)).logits).all()
