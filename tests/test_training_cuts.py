"""Cuts in training: what the decoder gets in training is what pruning gives it later, and no cut sees a mask."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import vlmprune
from training.backend import get_backend
from training.cuts import COUNTS, KINDS, Kept, draw_cut
from training.examples import draw_examples
from training.packing import pack
from training.tokenizer import build_tokenizer, word_ids
from vlmprune.author import ImageView, Method

KEPT = 40


@dataclass
class Given(Method):
    """Keeps the slots that it was given, image after image."""

    name: ClassVar[str] = "given"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "the slots of a training cut"
    chosen: ClassVar[list[Tensor]] = []

    def select(self, view: ImageView) -> Tensor:
        return self.chosen.pop(0)


@pytest.mark.parametrize("kind", ["scene", "pair"])
@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_cut_in_training_is_what_pruning_does(name: str, original: bool, kind: str) -> None:
    backend = get_backend(name)
    ids = word_ids(backend)
    torch.manual_seed(0)
    model = backend.build(len(ids)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.08)
    rng = np.random.default_rng(3)
    size = backend.sizes[-1]
    drawn = draw_examples(kind, rng, size, {"color": 2.0, "exist": 2.0}, first_wording_share=0, two_option_share=0)
    pixels = backend.pixels(np.stack([scene.image for scene in drawn.scenes]))
    batch, kept = pack(drawn.questions, 152, backend, ids)
    cuts = []

    def cut(features: Tensor) -> Kept:
        found = draw_cut(rng, features, backend.grid(size), KEPT)
        cuts.append(Kept(found.index, torch.full_like(found.original, original)))
        return cuts[0]

    with torch.no_grad():
        constants = backend.constants(size, torch.device("cpu"))
        packed = backend.forward(model, pixels, constants, batch.ids, batch.segment, batch.offset, cut)
    processor = backend.processor(build_tokenizer(backend, **backend.token_names))
    row = 2
    asked = kept[row][0]
    pictures = range(row * drawn.pictures, (row + 1) * drawn.pictures)
    content = [{"type": "image"}] * drawn.pictures + [{"type": "text", "text": asked.text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(images=[drawn.scenes[k].image for k in pictures], text=prompt, return_tensors="pt")
    Given.chosen = [cuts[0].index[k] for k in pictures]
    policy = "original" if original else "compact"
    with vlmprune.prune(model, Given(), keep=KEPT, positions=policy), torch.no_grad():
        pruned = model(**inputs).logits[0, -1]
    at = int(((batch.segment[row] == 0) & (batch.target[row] >= 0)).nonzero()[0, 0])
    torch.testing.assert_close(packed.logits[row, at], pruned, atol=2e-5, rtol=0)


def test_cuts_keep_the_asked_count_and_vary() -> None:
    rng = np.random.default_rng(0)
    features = torch.randn(64, 196, 16)
    for count in COUNTS:
        kept = draw_cut(rng, features, (14, 14), count)
        assert kept.index.shape == (64, count)
        assert (kept.index.diff(dim=1) > 0).all() and kept.index.max() < 196
        assert 0.2 < kept.original.float().mean() < 0.8
    assert abs(sum(KINDS.values()) - 1) < 1e-9


def test_a_direction_keeps_tokens_that_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of two kinds: cuts along a direction are far from an even mix more often than uniform ones."""
    features = torch.randn(64, 196, 8) * 0.1
    features[:, ::2] += 3
    shares = {}
    for kind in ("uniform", "direction"):
        monkeypatch.setattr("training.cuts.KINDS", {kind: 1.0})
        cut = partial(draw_cut, np.random.default_rng(1), grid=(14, 14), count=40)
        even = (cut(features).index % 2 == 0).float().mean(1)
        shares[kind] = ((even - 0.5).abs() > 0.3).float().mean()
    assert shares["uniform"] < 0.05 and shares["direction"] > 0.3
