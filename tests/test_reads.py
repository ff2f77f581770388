"""What the runtime reads from tensors, for which a GPU would have to be waited for: little, and each for a reason.

Copies to the CPU (`.cpu()`) are waits, too, and cannot be told from others here: the report of a prefill makes them
once it is over, and the seed takes the prompt's ids.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from harness import built, inputs_of
from harness_reads import Reads

import vlmprune

KINDS = ("random:0.3", "divprune:0.3", "fastv@2:0.3", "visionzip:0.3")
MOST = {"random:0.3": 8, "divprune:0.3": 8, "fastv@2:0.3": 9, "visionzip:0.3": 15}  # in a prefill with one image
REASONS = {
    # what the caller gave
    "runtime/session.py:_copies": "as many placeholders as features, or an error; twice where videos may be, too",
    "runtime/session.py:_prompt": "the columns of the placeholders",
    # what the method gave
    "runtime/select.py:check_selections": "a method that breaks the contract is an error",
    "runtime/select.py:check_merged": "likewise",
    "runtime/prompt_reading.py:_origin": "merged tokens have no signals: an error, not another's",
    "models/base.py:within_rounding": "what enters the LLM is what the projector made, or an error",
    "methods/contextual.py:clusters": "tokens that are left in each group",
    "runtime/select.py:_shown": "slots that show no patch are hidden from methods that read the encoder",
    # the sizes of what goes on
    "runtime/forward.py:_shorten": "the columns of text",
    "runtime/flow.py:tokens_of": "where an image's tokens are after a cut",
    "runtime/flow.py:lenders": "where new tokens stand",
    "runtime/inside.py:order": "the columns of text, inside the LLM",
    "runtime/decoder_reading.py:at": "the rows that FastV reads",
    "runtime/decoder_reading.py:_prompt_tokens": "likewise",
    "runtime/positions.py:compact": "rows that lose nothing keep their ids",
    "runtime/continuing.py:behind": "whether M-RoPE may go on in two ways",
    "runtime/continuing.py:step": "the first token behind a prompt goes on where that ended, or it is an error",
}


@torch.no_grad()
def reads(family: str, tokens: int) -> Counter[str]:
    """Of a generation of so many new tokens."""
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    with Reads() as found:
        built(family).generate(**inputs_of(family, [[0]]), **length, do_sample=False)
    return found.found


def of_prefill(found: Counter[str]) -> Counter[str]:
    return Counter({place: count for place, count in found.items() if not place.startswith("transformers/")})


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_reads_are_few_and_each_has_a_reason(family: str) -> None:
    inputs_of(family, [[0]])
    plain = reads(family, 6).total() - reads(family, 3).total()
    for kind in KINDS:
        with vlmprune.prune(built(family), kind):
            short, long = reads(family, 3), reads(family, 6)
            own = of_prefill(reads(family, 1))
        assert own.keys() <= REASONS.keys() and own.total() <= MOST[kind], (kind, own)
        assert long.total() - short.total() <= plain, f"{kind}: a step of decoding reads more than an unpruned one"


def test_every_reason_is_for_a_read() -> None:
    found: Counter[str] = Counter()
    for family in ("llava", "qwen2_5_vl"):
        for kind in KINDS:
            with vlmprune.prune(built(family), kind):
                found += of_prefill(reads(family, 2))
    assert found.keys() == REASONS.keys()
