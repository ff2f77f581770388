"""Idefics 2, whose encoder hands over the pictures of a sample as one: each has a budget, also behind beams."""

from __future__ import annotations

import pytest
import torch
from harness import STEPS, TOLERANCE, largest

import vlmprune
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import masking_oracle
from vlmprune.testing import image_numbers, prompt
from vlmprune.testing.generic import USUAL

SPEC = "divprune(per=image):0.4 > fastv@2:0.5"


@pytest.mark.parametrize("samples", [[[0, 1], [2]], [[0, 1], [None]], [[None], [3, 4, 5]]])
def test_beams_score_as_the_oracle_says(samples: list[list[int | None]]) -> None:
    torch.set_num_threads(1)
    family = USUAL["idefics2"]
    model, inputs = family.build(), prompt(family, samples)
    with vlmprune.prune(model, SPEC) as session:
        out = model.generate(
            **inputs, num_beams=3, max_new_tokens=STEPS, do_sample=False, length_penalty=0.0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    counts = [sum(seed is not None for seed in sample) for sample in samples]
    assert [[len(kept) for kept in sample] for sample in session.last.kept] == [[1] * count for count in counts]
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    policies = vlmprune.recipe(SPEC).on(adapter_for(model).info).policies(None)
    logits = masking_oracle(model, inputs, tokens, session.last, policies, image_numbers(family, samples))
    chosen = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].sum(1)
    assert largest(chosen, out.sequences_scores) < 10 * TOLERANCE  # a sum over steps
