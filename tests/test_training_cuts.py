"""Cuts in training: what the decoder gets in training is what pruning gives it later."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import vlmprune
from training.backend import Backend, TextBatch, get_backend
from training.cuts import COUNTS, KINDS, Kept, Late, draw_cut, draw_late
from training.examples import Examples, draw_examples
from training.packing import pack
from training.tokenizer import build_tokenizer, word_ids
from vlmprune.assets.questions import Question
from vlmprune.author import ImageView, Method, ModelInfo

KEPT = 40


@dataclass
class Given(Method):
    """Keeps the slots that it was given, image after image."""

    name: ClassVar[str] = "given"
    stage: ClassVar[str] = "vision, decoder"
    summary: ClassVar[str] = "the slots of a training cut"
    chosen: ClassVar[list[Tensor]] = []

    layer: int | None = None

    def decoder_layer(self, info: ModelInfo) -> int | None:
        return self.layer

    def select(self, view: ImageView) -> Tensor:
        return self.chosen.pop(0)


@dataclass
class Case:
    """A random model of a backend, pictures with packed questions, and the inputs of one question alone."""

    backend: Backend
    model: Any
    drawn: Examples
    batch: TextBatch
    size: tuple[int, int]
    asked: list[list[Question]]
    row: int = 2

    @classmethod
    def of(cls, name: str, kind: str) -> "Case":
        backend = get_backend(name)
        ids = word_ids(backend)
        torch.manual_seed(0)
        model = backend.build(len(ids)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.08)
        size = backend.sizes[-1]
        mix = {"color": 2.0, "exist": 2.0}
        rng = np.random.default_rng(3)
        drawn = draw_examples(kind, rng, size, mix, first_wording_share=0, two_option_share=0)
        batch, asked = pack(drawn.questions, 152, backend, ids)
        return cls(backend, model, drawn, batch, size, asked)

    def packed(self, **missing: Any) -> Tensor:
        """The logits for the first answer word of the row's first question, in training's forward."""
        pixels = self.backend.pixels(np.stack([scene.image for scene in self.drawn.scenes]))
        constants = self.backend.constants(self.size, torch.device("cpu"))
        batch = self.batch
        with torch.no_grad():
            out = self.backend.forward(self.model, pixels, constants, batch.ids, batch.segment, batch.offset, **missing)
        at = int(((batch.segment[self.row] == 0) & (batch.target[self.row] >= 0)).nonzero()[0, 0])
        return out.logits[self.row, at]

    @property
    def pictures(self) -> range:
        return range(self.row * self.drawn.pictures, (self.row + 1) * self.drawn.pictures)

    def pruned(self, recipe: Any, chosen: list[Tensor], **settings: Any) -> Tensor:
        """The same logits of the Hugging Face forward, pruned to the chosen slots."""
        processor = self.backend.processor(build_tokenizer(self.backend, **self.backend.token_names))
        text = self.asked[self.row][0].text
        content = [{"type": "image"}] * self.drawn.pictures + [{"type": "text", "text": text}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        images = [self.drawn.scenes[k].image for k in self.pictures]
        inputs = processor(images=images, text=prompt, return_tensors="pt")
        Given.chosen = list(chosen)
        with vlmprune.prune(self.model, recipe, keep=KEPT, **settings), torch.no_grad():
            return self.model(**inputs).logits[0, -1]


def drawn_cut(case: Case, rng: np.random.Generator, count: int = KEPT) -> Kept:
    images = np.stack([scene.image for scene in case.drawn.scenes])
    rows, columns = case.backend.grid(case.size)
    return draw_cut(rng, images, rng.random((len(images), rows * columns)) < 0.2, (rows, columns), count)


@pytest.mark.parametrize("kind", ["scene", "pair"])
@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_cut_in_training_is_what_pruning_does(name: str, original: bool, kind: str) -> None:
    case = Case.of(name, kind)
    drawn = drawn_cut(case, np.random.default_rng(3))
    kept = Kept(drawn.index, torch.full_like(drawn.original, original))
    policy = "original" if original else "compact"
    pruned = case.pruned(Given(), [kept.index[k] for k in case.pictures], positions=policy)
    torch.testing.assert_close(case.packed(kept=kept), pruned, atol=2e-5, rtol=0)


@pytest.mark.parametrize("layer", [1, 3, 7])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_tokens_that_leave_inside_the_decoder_are_cut_there(name: str, layer: int) -> None:
    case = Case.of(name, "scene")
    rows, columns = case.backend.grid(case.size)
    dropped = torch.rand(len(case.drawn.scenes), rows * columns).argsort(1) >= KEPT
    pruned = case.pruned(Given(layer=layer), [(~dropped[case.row]).nonzero()[:, 0]])
    late = case.packed(late=Late(torch.tensor(layer), dropped))
    torch.testing.assert_close(late, pruned, atol=2e-5, rtol=0)
    nothing = Late(torch.tensor(case.backend.layers), torch.ones_like(dropped))
    torch.testing.assert_close(case.packed(late=nothing), case.packed(), atol=1e-6, rtol=0)


def test_what_leaves_inside_the_decoder_varies() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_late(rng, 4, 144, 8) for _ in range(60)]
    assert {int(late.layer) for late in drawn} == set(range(1, 8))
    assert {int((~late.dropped).sum(1)[0]) for late in drawn} == set(COUNTS)
    assert all(((~late.dropped).sum(1) == (~late.dropped).sum(1)[0]).all() for late in drawn)


def pictures(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images of two kinds of slots, dark and bright in turn, and no things."""
    bright = (np.arange(196) % 2).reshape(14, 14).repeat(8, 0).repeat(8, 1)
    images = rng.integers(0, 60, (64, 112, 112, 3)) + 180 * bright[None, :, :, None]
    return images.astype(np.uint8), np.zeros((64, 196), bool)


def test_cuts_keep_the_asked_count_and_vary() -> None:
    rng = np.random.default_rng(0)
    for count in COUNTS:
        kept = draw_cut(rng, *pictures(rng), (14, 14), count)
        assert kept.index.shape == (64, count)
        assert (kept.index.diff(dim=1) > 0).all() and kept.index.max() < 196
        assert 0.2 < kept.original.float().mean() < 0.8
    assert abs(sum(KINDS.values()) - 1) < 1e-9


def test_a_cut_keeps_tokens_that_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of two kinds: cuts along a direction are far from an even mix more often than uniform ones."""
    shares = {}
    for kind in ("uniform", "alike"):
        monkeypatch.setattr("training.cuts.KINDS", {kind: 1.0})
        rng = np.random.default_rng(1)
        even = (draw_cut(rng, *pictures(rng), (14, 14), 40).index % 2 == 0).float().mean(1)
        shares[kind] = ((even - 0.5).abs() > 0.3).float().mean()
    assert shares["uniform"] < 0.05 and shares["alike"] > 0.3


def test_a_cut_keeps_things_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.cuts.KINDS", {"things": 1.0})
    rng = np.random.default_rng(1)
    images, things = pictures(rng)
    things[:, 50:80] = True
    kept = draw_cut(rng, images, things, (14, 14), 40).index
    assert ((kept >= 50) & (kept < 80)).sum(1).tolist() == [30] * 64
    assert len({tuple(row) for row in kept.tolist()}) > 1
