"""The Triton kernels of attention statistics equal the reference: on a GPU, or under Triton's interpreter.

`python3 tools/extras.py triton` runs this in an environment that has Triton.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are defined
pytest.importorskip("triton", reason="Triton is not installed: python3 tools/extras.py triton makes an environment")

import vlmprune
from vlmprune.scores import chunked, computed_by, fused_attention, kernels, reference
from vlmprune.scores.fusion import Rows
from vlmprune.scores.seen import Seen, packed, real_ones
from vlmprune.testing import FAMILIES, alone

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Inputs are given in each precision, and the reference multiplies the same numbers in float32: only sums differ.
BOUND = {torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}
often = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Queries and keys, and what shapes their logits."""
    rows = draw(st.integers(1, 75))
    columns = rows + draw(st.sampled_from([0, 1, 40]))
    kv, group, batch = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3])), draw(st.integers(1, 2))
    dtype = draw(st.sampled_from(list(BOUND)))
    width = draw(st.sampled_from([8, 24, 64]))
    made = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(batch, rows, columns, generator=made) > 0.4
        mask[:, torch.arange(rows), torch.arange(rows) + columns - rows] = True  # every query sees one
        mask = mask.to(DEVICE)
    causal = draw(st.booleans())
    return {
        "query": (2 * torch.randn(batch, kv * group, rows, width, generator=made)).to(DEVICE, dtype),
        "key": torch.randn(batch, kv, columns, width, generator=made).to(DEVICE, dtype),
        "scaling": width**-0.5,
        "seen": Seen(
            mask,
            None,
            causal,
            draw(st.sampled_from([None, 1, 9])) if causal else None,
            draw(st.sampled_from([None, 5.0])),
            draw(st.sampled_from([None, torch.randn(kv * group, generator=made).to(DEVICE)])),
        ),
        "dtype": dtype,
    }


def whole_mask(call: dict[str, Any]) -> torch.Tensor | None:
    query, key = call["query"], call["key"]
    mask = call["seen"].visible(0, query.shape[2], query, key)
    return None if mask is None else mask.expand(len(query), -1, -1)


@often
@given(calls(), st.sampled_from(["mean", "max", "all"]))
def test_chosen_rows_equal_the_reference(call: dict[str, Any], heads: str) -> None:
    given = call["query"], call["key"], call["scaling"]
    seen = call["seen"]
    due = reference.attention_rows(*given, whole_mask(call), heads, seen.softcap, seen.sinks)
    for way in (kernels, chunked):
        found = way.attention_rows(*given, seen, heads)
        assert found.shape == due.shape and float((found - due).abs().max()) < BOUND[call["dtype"]]


@often
@given(calls())
def test_received_attention_equals_the_reference(call: dict[str, Any]) -> None:
    given, seen = (call["query"], call["key"], call["scaling"]), call["seen"]
    count = call["query"].shape[1] * call["query"].shape[2]
    due = reference.received_attention(*given, None, whole_mask(call), seen.softcap, seen.sinks)
    for way in (kernels, chunked):
        found = way.received_sum(*given, seen) / count
        assert found.shape == due.shape and float((found - due).abs().max()) < BOUND[call["dtype"]]


@often
@given(calls())
def test_a_log_sum_exp_that_is_known_is_used_again(call: dict[str, Any]) -> None:
    given, seen = (call["query"], call["key"], call["scaling"]), call["seen"]
    lse = kernels.log_sum_exp(*given, seen)
    assert torch.equal(kernels.received_sum(*given, seen, lse), kernels.received_sum(*given, seen))
    assert torch.equal(kernels.attention_rows(*given, seen, "mean", lse), kernels.attention_rows(*given, seen))
    shifted = kernels.received_sum(*given, seen, lse + 1)
    assert torch.allclose(shifted * torch.e, kernels.received_sum(*given, seen), rtol=1e-4)


@often
@given(calls())
def test_log_sum_exp_equals_torchs(call: dict[str, Any]) -> None:
    given, seen = (call["query"], call["key"], call["scaling"]), call["seen"]
    own, due = (way.log_sum_exp(*given, seen) for way in (kernels, chunked))
    assert own.shape == due.shape and torch.allclose(own, due, rtol=0, atol=1e-5)


def test_fusion_by_the_kernels_equals_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(4, rows, 16, generator=draw).to(DEVICE) for rows in (40, 60))
    key, value = key[:2], torch.randn(2, 60, 8, generator=draw).to(DEVICE)
    visible = torch.ones(40, 60, dtype=torch.bool, device=DEVICE).tril(20)
    rows = Rows(query, key, value, 0.25, visible, sinks=torch.randn(4, generator=draw).to(DEVICE))
    output = torch.randn(40, 4, 8, generator=draw).to(DEVICE)
    groups = [torch.arange(0, 9, device=DEVICE), torch.arange(12, 30, device=DEVICE)]
    found = []
    for way in ("torch", "triton"):
        with computed_by(way) as ran:
            found.append(fused_attention(output, rows, groups, strength=0.4, threshold=0.01, top_share=0.5))
        assert ran == {way}
    assert torch.equal(found[0][1], found[1][1]) and found[0][1].any()
    assert float((found[0][0] - found[1][0]).abs().max()) < 1e-5


def test_padding_and_packed_sequences() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 2, 50, 16, generator=draw).to(DEVICE) for _ in range(2))
    real = torch.ones(2, 50, dtype=torch.bool, device=DEVICE)
    real[1, :13] = False
    total = kernels.received_sum(query, key, 0.25, Seen(segments=real_ones(real, 50)))
    due = reference.received_attention(query, key, 0.25, real)
    assert float((total / (2 * real.sum(1, keepdim=True)) - due).abs().max()) < 2e-6
    borders = torch.tensor([0, 7, 40, 50])
    total = kernels.received_sum(query[:1], key[:1], 0.25, Seen(segments=packed(borders, query.device)))
    parts = [
        reference.received_attention(query[:1, :, a:b], key[:1, :, a:b], 0.25) * 2 * (b - a)
        for a, b in zip(borders[:-1].tolist(), borders[1:].tolist())
    ]
    assert float((total - torch.cat(parts, 1)).abs().max()) < 1e-5


def test_two_runs_are_equal_to_the_last_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 70, 32, generator=draw).to(DEVICE, torch.bfloat16) for _ in range(2))
    first, second = (kernels.received_sum(query, key, 0.2, Seen()) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("method", ["hiprune", "fastv", "hilo"])
def test_a_session_says_that_the_kernels_ran(method: str) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build().to(DEVICE), alone(family, [[0]], 0)
    inputs = {name: value.to(DEVICE) for name, value in inputs.items()}
    kept = []
    for way in ("torch", "triton"):
        with torch.no_grad(), vlmprune.prune(model, method, keep=0.5, scores=way) as session:
            model(**inputs)
        assert session.last.scores == way
        kept.append(session.last.kept[0][0])
    assert torch.equal(*kept)
