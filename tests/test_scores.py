"""Attention statistics equal those of eager attention, and never hold heads x N x N numbers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import RAGGED, built, inputs_of
from harness_spies import InnerSpy, Spy
from torch.utils._python_dispatch import TorchDispatchMode
from versions import cache_of

import vlmprune
from vlmprune.core.needs import Depth
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import ClsAttention, LastQueryAttention, ReceivedAttention, TextQueryAttention
from vlmprune.models import adapter_for
from vlmprune.runtime import taps
from vlmprune.scores import attention_rows, choice, chunked, received_attention, reference

EXACT = 1e-6


def tensors(heads: int, kv_heads: int, queries: int, keys: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, heads, queries, 16, generator=generator)
    return query, torch.randn(2, kv_heads, keys, 16, generator=generator)


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
def test_chunked_equals_reference(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmprune.scores.chunked.CHUNK_ELEMENTS", 1000)  # many chunks, the last one short
    query, key = tensors(8, kv_heads, 37, 37)
    assert (
        float((received_attention(query, key, 0.3) - reference.received_attention(query, key, 0.3)).abs().max()) < EXACT
    )
    mask = torch.ones(37, 37, dtype=torch.bool).tril().expand(2, -1, -1)
    rows = attention_rows(query, key, 0.3, mask)
    assert float((rows - reference.attention_rows(query, key, 0.3, mask)).abs().max()) < EXACT
    assert float(rows.triu(1).abs().max()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype) -> None:
    query, key = (x.to(dtype) for x in tensors(4, 4, 20, 20))
    scores = received_attention(query, key, 0.3)
    assert scores.dtype == torch.float32
    assert float((scores - reference.received_attention(query, key, 0.3)).abs().max()) < EXACT


class Peak(TorchDispatchMode):
    """The largest tensor that any operation makes, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_no_tensor_of_heads_times_n_squared() -> None:
    heads, n = 16, 1500
    query, key = (torch.randn(1, heads, n, 8) for _ in range(2))
    with Peak() as peak:
        received_attention(query, key, 0.3)
    assert peak.elements <= 1 << 20 < heads * n * n / 30
    with Peak() as control:
        reference.received_attention(query, key, 0.3)
    assert control.elements >= heads * n * n


def test_peak_memory_of_the_process() -> None:
    """The same seen from outside: resident memory while scoring grows by a small part of heads x N x N floats."""
    heads, n = 16, 2000
    query, key = (torch.randn(1, heads, n, 8) for _ in range(2))
    received_attention(query[:, :, :64], key, 0.3)  # allocator and threads warm

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before, peak, stop = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    received_attention(query, key, 0.3)
    stop.set()
    watcher.join()
    assert peak - before < heads * n * n * 4 / 4


def eager_maps(family: str, inputs: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
    """Vision maps by layer [images, H, N, N] (Qwen: one list of images a layer) and decoder attentions."""
    model = built(family, "eager")
    adapter = adapter_for(model)
    with taps.capture(adapter.encoder_attentions()) as calls, torch.no_grad():
        out = model(**inputs, output_attentions=True)
    maps = {module: [reference.attention(c.query, c.key, c.scaling) for c in seen] for module, seen in calls.items()}
    return [maps[module] for module in adapter.encoder_attentions()], out.attentions


@torch.no_grad()
def test_llava_signals_equal_eager_attentions() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    spy = Spy({"received": ReceivedAttention(Depth(9, 24)), "cls": ClsAttention()})
    with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))) as session:
        model(**inputs)
    assert session.last.layers == {"spy.received": 1, "spy.cls": 3}  # ninth of 24 is the second of five; used: -2
    eager = built("llava", "eager")
    attentions = eager.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    for image in range(3):
        received = attentions[1][image].mean((0, 1))[1:]
        cls = attentions[3][image].mean(0)[0, 1:]
        assert float((spy.seen[image]["received"] - received).abs().max()) < EXACT
        assert float((spy.seen[image]["cls"] - cls).abs().max()) < EXACT


@torch.no_grad()
def test_qwen_scores_are_unpermuted_and_pooled() -> None:
    """Each slot's score is the mean over the four patches it covers, whatever window they were computed in."""
    model, inputs = built("qwen2_5_vl"), inputs_of("qwen2_5_vl", RAGGED)
    spy = Spy({"received": ReceivedAttention(Depth(16, 32))})
    with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))) as session:
        model(**inputs)
    assert session.last.layers == {"spy.received": 1}
    maps, _ = eager_maps("qwen2_5_vl", inputs)
    for image, (t, h, w) in enumerate(inputs["image_grid_thw"].tolist()):
        received = maps[1][image][0].mean((0, 1))  # patches of this image, window order
        # place every patch by hand: walk the windows of 2 x 2 slots, slot by slot, four patches each
        canvas, at = torch.zeros(h // 2, w // 2), 0
        for top in range(0, h // 2, 2):
            for left in range(0, w // 2, 2):
                for row in range(top, min(top + 2, h // 2)):
                    for col in range(left, min(left + 2, w // 2)):
                        canvas[row, col] = received[at : at + 4].mean()
                        at += 4
        assert at == t * h * w
        assert float((spy.seen[image]["received"] - canvas.flatten()).abs().max()) < EXACT


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("layer", [1, 3])
def test_decoder_rows_equal_eager_attentions(family: str, layer: int) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    spy = InnerSpy(layer, {"last": LastQueryAttention(), "text": TextQueryAttention()})
    with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))):
        model(**inputs)
    _, attentions = eager_maps(family, inputs)
    ids, seen = inputs["input_ids"], iter(spy.seen)
    for row, images in enumerate(RAGGED):
        heads = attentions[layer - 1][row].mean(0)
        columns = (ids[row] == 90).nonzero().squeeze(1)
        starts = [0, *((columns.diff() > 1).nonzero().squeeze(1) + 1).tolist()]
        for image in range(len(images)):
            end = [*starts[1:], len(columns)][image]
            here = columns[starts[image] : end]
            text = [c for c in range(int(here[-1]) + 1, ids.shape[1]) if ids[row, c] != 90]
            shown = next(seen)
            assert float((shown["last"] - heads[-1, here]).abs().max()) < EXACT
            assert float((shown["text"] - heads[text][:, here]).abs().max()) < EXACT


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_scoring_runs_no_layer_twice_and_leaves_sdpa_on(family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    calls: dict[str, int] = {}
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
        for name, module in model.named_modules()
        if name
    ]
    try:
        model(**inputs)
        vanilla, calls = dict(calls), {}
        with vlmprune.prune(model, "hiprune:0.5 > fastv@2:0.5") as session:
            out = model(**inputs)
            assert model.config._attn_implementation == "sdpa"
    finally:
        for handle in handles:
            handle.remove()
    assert calls == vanilla
    lengths = [layer.get_seq_length() for layer in cache_of(out).layers]
    assert lengths[0] == lengths[1] > lengths[2] == lengths[3]
    assert session.last.seconds > 0


def test_capped_logits() -> None:
    """Gemma 2 caps its logits before the softmax."""
    query, key = tensors(4, 2, 9, 20)
    cap, mask = 0.7, torch.ones(9, 20, dtype=torch.bool).tril(11).expand(2, -1, -1)
    logits = cap * torch.tanh(query @ key.repeat_interleave(2, dim=1).mT * 0.3 / cap)
    expected = logits.masked_fill(~mask[:, None], float("-inf")).softmax(-1).mean(1)
    rows = attention_rows(query, key, 0.3, mask, softcap=cap)
    assert float((rows - expected).abs().max()) < EXACT
    assert float((rows - attention_rows(query, key, 0.3, mask)).abs().max()) > 100 * EXACT


def test_a_session_says_what_computed_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    for method, due in (("hiprune", "torch"), ("fastv", "torch"), ("random", None)):
        with torch.no_grad(), vlmprune.prune(model, method, keep=0.5) as session:
            model(**inputs)
        assert session.last.scores == due
    with pytest.raises(vlmprune.UserError, match="scores='cuda': choose from auto, torch, triton"):
        vlmprune.prune(model, "hiprune", keep=0.5, scores="cuda")
    monkeypatch.setattr("vlmprune.scores.choice._kernels", lambda: None)
    with pytest.raises(vlmprune.UserError, match="needs the package triton"):
        vlmprune.prune(model, "hiprune", keep=0.5, scores="triton")


def test_kernels_that_do_not_work_are_not_chosen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong:
        attention_rows = staticmethod(lambda *given: chunked.attention_rows(*given) + 0.001)
        received_sum = staticmethod(chunked.received_sum)

    class Broken:
        @staticmethod
        def attention_rows(*given: object) -> None:
            raise RuntimeError("no compiler")

    cpu = torch.device("cpu")
    for kernels, due in ((chunked, True), (None, False), (Wrong, False), (Broken, False)):
        monkeypatch.setattr("vlmprune.scores.choice._kernels", lambda kernels=kernels: kernels)
        choice._proven.cache_clear()
        assert choice._proven(cpu, torch.float32, 16) is due
    assert "attention_rows differs from torch's" in caplog.text and "no compiler" in caplog.text
    choice._proven.cache_clear()


def test_packed_sequences_see_themselves_alone() -> None:
    query, key = tensors(4, 2, 30, 30)
    borders = torch.tensor([0, 4, 17, 30])
    found = received_attention(query[:1], key[:1], 0.3, borders=borders)
    parts = [
        reference.received_attention(query[:1, :, a:b], key[:1, :, a:b], 0.3)
        for a, b in zip(borders[:-1].tolist(), borders[1:].tolist())
    ]
    assert float((found - torch.cat(parts, 1)).abs().max()) < EXACT


def test_kernels_run_on_the_gpu_that_has_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current GPU, which need not be that of a layer; here it is noted whose is made current."""
    current: list[torch.Tensor | None] = [None]
    seen: list[torch.Tensor | None] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    class Noting:
        @staticmethod
        def attention_rows(*given: object) -> torch.Tensor:
            seen.append(current[-1])
            return chunked.attention_rows(*given)  # type: ignore[arg-type]

        @staticmethod
        def received_sum(*given: object) -> torch.Tensor:
            seen.append(current[-1])
            return chunked.received_sum(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr("vlmprune.scores.choice._kernels", lambda: Noting)
    query, key = tensors(4, 2, 9, 20)
    with choice.computed_by("triton"):
        attention_rows(query, key, 0.3)
    assert len(seen) == 1 and seen[0] is query
    choice._proven.cache_clear()
    assert choice._proven(torch.device("cpu"), torch.float32, 16)
    choice._proven.cache_clear()
    assert len(seen) == 3 and all(tensor is not None for tensor in seen)
