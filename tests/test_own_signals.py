"""A signal of a paper's own, in a file outside the package: on every family that has what it reads, without an edit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, counted, generate, inputs_of, largest, oracle, seeing
from torch import Tensor
from versions import CACHE

import vlmprune
from vlmprune.author import (
    DecoderMethod,
    DecoderNeed,
    DecoderReading,
    EncoderLayer,
    EncoderNeed,
    EncoderReading,
    ImageView,
    ModelInfo,
    Need,
    Scorer,
)
from vlmprune.bench.flops import run_flops
from vlmprune.bench.shapes import shape_of
from vlmprune.models import adapter_for
from vlmprune.report.tables import MISSING, flops_share
from vlmprune.testing import FAMILIES, image_numbers

LAYER = 2  # methods act before it, so decoder layer 1 is read


@dataclass(frozen=True)
class Values(DecoderNeed):
    """Values of decoder layer K-1, KV heads side by side. Shape [n, C]."""

    words: ClassVar[str] = "LLM values"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.values(at.image)


@dataclass(frozen=True)
class MlpOutput(DecoderNeed):
    """What the MLP of decoder layer K-1 gives out. Shape [n, D]."""

    taps: ClassVar[tuple[str, ...]] = ("mlp_output",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.mlp_output(at.image)


@dataclass(frozen=True)
class AttentionOutput(DecoderNeed):
    """What the attention block of decoder layer K-1 gives out. Shape [n, D]."""

    taps: ClassVar[tuple[str, ...]] = ("attention_output",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.attention_output(at.image)


@dataclass(frozen=True)
class States(EncoderNeed):
    """Hidden states behind an encoder layer. Shape [n, width]."""

    taps: ClassVar[tuple[str, ...]] = ("states",)

    layer: EncoderLayer = 1

    def read(self, at: EncoderReading) -> Tensor:
        return at.states(self.layer).rows


@dataclass(frozen=True)
class MeanStates(EncoderNeed):
    """Mean of the hidden states behind two encoder layers, less that of their queries. Shape [n, width]."""

    taps: ClassVar[tuple[str, ...]] = ("states", "attention")

    @property
    def layers(self) -> tuple[EncoderLayer, ...]:
        return (0, -1)

    def read(self, at: EncoderReading) -> Tensor:
        queries = at.queries(0, joined=True).rows
        return (at.states(0).rows + at.states(-1).rows) / 2 + 0 * queries.sum(1, keepdim=True)


@dataclass
class Norm(Scorer):
    """The longest rows of one signal."""

    name: ClassVar[str] = "norm"
    stage: ClassVar[str] = "vision"
    signal: Need = States()

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"rows": self.signal}

    def score(self, view: ImageView) -> Tensor:
        self.__dict__.setdefault("seen", []).append(view["rows"])
        return view["rows"].norm(dim=1)


@dataclass
class InnerNorm(Norm, DecoderMethod):
    """The same inside the LLM."""

    name: ClassVar[str] = "inner-norm"
    stage: ClassVar[str] = "decoder"
    layer: int = LAYER


DECODER_NEEDS = (Values(), MlpOutput(), AttentionOutput())


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def has_attention(family: str) -> bool:
    return adapter_for(built(family)).layer_kind(LAYER - 1) != "linear_attention"


def seen_by_hooks(family: str, need: DecoderNeed) -> list[Tensor]:
    """What an unpruned forward of a ragged batch gives each image, read without vlmprune."""
    model, inputs = built(family), inputs_of(family, RAGGED)
    layer: Any = adapter_for(model).decoder_layers[LAYER - 1]
    noted: list[Any] = []
    mlp = layer.feed_forward if hasattr(layer, "feed_forward") else layer.mlp
    part = mlp if isinstance(need, MlpOutput) else adapter_for(model).decoder_attention(LAYER - 1)
    handle = part.register_forward_hook(lambda module, args, output: noted.append(output))
    out = model(**counted(family, inputs), use_cache=True)
    handle.remove()
    if isinstance(need, Values):
        rows = getattr(out, CACHE, None) or out.past_key_values
        states = rows.layers[LAYER - 1].values.transpose(1, 2).flatten(2)
    else:
        states = noted[0][0] if isinstance(noted[0], tuple) else noted[0]
        states = states.unflatten(0, inputs["input_ids"].shape) if states.ndim == 2 else states  # Llama 4's experts
    numbers = image_numbers(FAMILIES[family], RAGGED)
    found = []
    for row, images in enumerate(RAGGED):
        for image in range(sum(seed is not None for seed in images)):
            found.append(states[row, numbers[row][-states.shape[1] :] == image])
    return found


@pytest.mark.parametrize("need", DECODER_NEEDS, ids=lambda need: type(need).__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_signal(family: str, need: DecoderNeed) -> None:
    if not has_attention(family) and not isinstance(need, MlpOutput):
        with pytest.raises(vlmprune.UserError, match="no attention map"):
            vlmprune.prune(built(family), InnerNorm(signal=need), keep=0.5).__enter__()
        return
    if isinstance(need, Values) and getattr(adapter_for(built(family)).text_config, "kv_lora_rank", None):
        pytest.skip("the cache, with which they are compared, holds what values are made of")
    method, inputs = InnerNorm(signal=need), inputs_of(family, RAGGED)
    with vlmprune.prune(built(family), method, keep=0.5) as session:
        tokens, logits = generate(built(family), inputs)
    expected = seen_by_hooks(family, need)
    for found, rows in zip(method.__dict__["seen"], expected, strict=True):
        assert largest(found, rows[-len(found) :]) < 1e-5
    assert largest(logits, oracle(family, RAGGED, inputs, tokens, session.last, {})) < TOLERANCE


@pytest.mark.parametrize("need", [States(), MeanStates()], ids=lambda need: type(need).__name__)
@seeing
def test_an_encoder_signal(family: str, need: EncoderNeed) -> None:
    adapter, inputs = adapter_for(built(family)), inputs_of(family, RAGGED)
    method = Norm(signal=need)
    with vlmprune.prune(built(family), method, keep=0.5) as session:
        tokens, logits = generate(built(family), inputs)
    positions = {0: method.positions(adapter.info)}
    assert largest(logits, oracle(family, RAGGED, inputs, tokens, session.last, positions)) < TOLERANCE
    assert session.last.layers == ({"norm.rows": 1} if isinstance(need, States) else
                                   {"norm.rows.0": 0, "norm.rows.1": len(adapter.encoder_layers()) - 1})  # fmt: skip


def test_states_are_those_of_the_layer() -> None:
    """Of a tower with a slot a patch and no padding, the rows are the layer's output as it is."""
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    noted: list[Tensor] = []
    layer = adapter_for(model).encoder_layers()[1]
    method = Norm(signal=States())
    handle = layer.register_forward_hook(
        lambda module, args, output: noted.append(output[0] if isinstance(output, tuple) else output)
    )
    with vlmprune.prune(model, method, keep=0.5):
        model(**inputs)
    handle.remove()
    for found, rows in zip(method.__dict__["seen"], noted[0], strict=True):
        assert torch.equal(found, rows[1:])  # without CLS


@pytest.mark.parametrize("need", [Values(), MlpOutput()], ids=["attention", "mlp_output"])
def test_reading_what_was_not_named_is_an_error(need: DecoderNeed) -> None:
    @dataclass(frozen=True)
    class Untapped(type(need)):  # type: ignore[misc]
        taps: ClassVar[tuple[str, ...]] = ()

    with (
        vlmprune.prune(built("llava"), InnerNorm(signal=Untapped()), keep=0.5),
        pytest.raises(RuntimeError, match="taps"),
    ):
        built("llava")(**inputs_of("llava", RAGGED))


def test_an_encoder_layer_that_was_not_named_is_an_error() -> None:
    @dataclass(frozen=True)
    class Untapped(States):
        taps: ClassVar[tuple[str, ...]] = ()

    with (
        vlmprune.prune(built("llava"), Norm(signal=Untapped()), keep=0.5),
        pytest.raises(RuntimeError, match="taps"),
    ):
        built("llava")(**inputs_of("llava", RAGGED))


def test_an_unknown_tap_is_an_error() -> None:
    @dataclass(frozen=True)
    class Misspelt(Values):
        taps: ClassVar[tuple[str, ...]] = ("atention",)

    with pytest.raises(TypeError, match="no such tap: atention"):
        vlmprune.prune(built("llava"), InnerNorm(signal=Misspelt()), keep=0.5).__enter__()


OWN_FILE = """
from dataclasses import dataclass
from typing import ClassVar

from vlmprune.author import EncoderNeed, Scorer


@dataclass(frozen=True)
class States(EncoderNeed):
    taps: ClassVar[tuple[str, ...]] = ("states",)
    layer: int = 1

    def read(self, at):
        return at.states(self.layer).rows


@dataclass
class Mine(Scorer):
    name: ClassVar[str] = "mine"
    stage: ClassVar[str] = "vision"

    def needs(self, info):
        return {"rows": States()}

    def score(self, view):
        return view["rows"].norm(dim=1)
"""


def test_a_signal_without_a_price_is_a_dash(tmp_path: Path) -> None:
    """Operations of the method are not known then, nor their sum; what the model itself costs still is."""
    (tmp_path / "mine.py").write_text(OWN_FILE)
    shape = shape_of(built("llava").config)
    assert shape is not None
    sample: Any = SimpleNamespace(input_tokens=50, visual_before=36, visual_encoded=36, stages=[(0, 18)])
    priced, free = (run_flops(shape, f"{method}:0.5", [sample]) for method in ("divprune", f"{tmp_path}/mine.py:Mine"))
    assert priced.total is not None and priced.selection
    assert free.selection is None and free.total is None and free.prefill == priced.prefill
    vanilla = run_flops(shape, "vanilla", [sample])
    rows = [SimpleNamespace(flops=flops, is_vanilla=flops is vanilla) for flops in (vanilla, priced, free)]
    block: Any = SimpleNamespace(rows=rows)
    assert [flops_share(block, row) == MISSING for row in rows] == [False, False, True]  # type: ignore[arg-type]


def test_a_signal_in_the_tree_has_its_row_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.append(str(Path(__file__).parent.parent / "tools"))
    import docs_methods

    assert Values not in docs_methods.signals()
    monkeypatch.setattr(Values, "__module__", "vlmprune.methods.decoder.paper")
    assert "| `Values()` | Values of decoder layer K-1, KV heads side by side." in docs_methods.decoder_signals()
