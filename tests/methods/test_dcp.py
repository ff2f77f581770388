"""DCP, and the gradient through CLIP's last layer."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from harness import built, inputs_of
from harness_text import QUESTION, clip_model, clip_tokenizer, prompt_tokenizer, tower
from torch import Tensor

import vlmprune
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import Aligned, ImageView, ModelInfo, TowerRows
from vlmprune.methods.vision.dcp import DCP
from vlmprune.runtime.text_tower import TextTower

LLAVA = ModelInfo("llava", 24, 32, has_cls=True)


@cache
def of_llava() -> TextTower:
    """A CLIP model whose vision tower is that of the tiny LLaVA."""
    clip = clip_model()
    clip.vision_model.load_state_dict(built("llava").model.vision_tower.state_dict())
    clip.set_attn_implementation("eager")
    return TextTower(clip, clip_tokenizer(), prompt_tokenizer())


def grad_cam(pixels: Tensor) -> Tensor:
    """[images, N] of the last layer's attention map, by a gradient through all of CLIP."""
    clip, seen = of_llava().clip, list[Tensor]()
    attention = clip.vision_model.encoder.layers[-1].self_attn
    handle = attention.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    image = clip.get_image_features(pixels).pooler_output
    handle.remove()
    text = of_llava().text(QUESTION)
    cosine = torch.nn.functional.cosine_similarity(image, text, dim=-1).sum()
    [gradient] = torch.autograd.grad(cosine, seen)
    return (gradient * seen[0]).clamp(min=0).mean(1)[:, 0, 1:].detach()


class Noting(DCP):
    def score(self, view: ImageView) -> Tensor:
        NOTED.append(view)
        return super().score(view)


NOTED: list[ImageView] = []


def noted(no_grad: Any, **options: Any) -> list[ImageView]:
    """What the method sees of three images in two prompts."""
    NOTED.clear()
    inputs, model = inputs_of("llava", [[0, 1], [2]]), built("llava")
    recipe = Recipe((Stage(Noting(**options), 0.4),))
    with no_grad(), vlmprune.prune(model, recipe, text_tower=of_llava()) as session:
        session.question = QUESTION
        model(**inputs)
    assert session.last.text == "CLIP text tower"
    return list(NOTED)


@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_cue_by_text_is_a_gradient_through_all_of_clip(no_grad: Any) -> None:
    torch.set_num_threads(1)
    wanted = grad_cam(inputs_of("llava", [[0, 1], [2]])["pixel_values"])
    views = noted(no_grad)
    assert len(views) == len(wanted) == 3 and float(wanted.max()) > 1e-4
    for view, due in zip(views, wanted, strict=True):
        assert torch.allclose(DCP().text(view), due, rtol=1e-4, atol=1e-7)
        assert not DCP().text(view).requires_grad


def test_no_parameter_gets_a_gradient_and_none_stays_open() -> None:
    noted(torch.no_grad)
    models = (of_llava().clip, built("llava"))
    assert all(parameter.grad is None for model in models for parameter in model.parameters())
    with torch.no_grad():
        of_llava().gradient(torch.zeros(1, 32), torch.zeros(1, 32), QUESTION)
        assert not torch.is_grad_enabled()


def test_a_half_precision_tower_gives_nearly_the_same() -> None:
    half = TextTower(copy.deepcopy(of_llava().clip).bfloat16(), clip_tokenizer(), prompt_tokenizer())
    made = torch.Generator().manual_seed(1)
    collected, state = torch.randn(2, 2, 32, generator=made)
    a, b = half.gradient(collected, state, QUESTION), of_llava().gradient(collected, state, QUESTION)
    assert a.dtype == torch.float32 and float((a - b).abs().max()) < 0.1 * float(b.abs().max())


def shown(keep: int, text: list[float], image: list[float]) -> ImageView:
    """Two heads of width one, without a text tower where there is no text."""
    n = len(image)
    signals: dict[str, Any] = {"image": torch.tensor(image), "aligned": Aligned(torch.eye(n), torch.ones(1, n), False)}
    if text:
        values = torch.tensor(text)[:, None].expand(-1, 2)
        rows = torch.cat([values, torch.ones(n, 2)], dim=1)
        signals |= {"collected": TowerRows(rows, None), "gradient": torch.ones(1, 2)}
    return ImageView(keep, torch.arange(n), None, LLAVA, signals)


def test_both_cues_count_as_much_as_balance_says() -> None:
    view = shown(2, [0.0, 8.0, 1.0, 1.0, -5.0], [0.1, 0.1, 0.1, 0.1, 0.6])
    assert DCP().text(view).tolist() == [0, 8, 1, 1, 0]  # what speaks against the question counts as nothing
    assert DCP().select(view).tolist() == [1, 4]
    assert DCP(balance=1.0).select(view).tolist() == [1, 2] and DCP(balance=0.0).select(view).tolist() == [0, 4]
    assert DCP().score(view).sum() == pytest.approx(1)
    for cues in ([0.0] * 5, [-1.0] * 5):
        assert DCP().select(shown(2, cues, [0.2] * 5)).tolist() == [0, 1]


def test_without_a_text_tower_it_compares_with_the_instruction() -> None:
    view = shown(2, [], [0.2, 0.2, 0.3, 0.2, 0.1])
    view.signals["aligned"] = Aligned(torch.eye(5), torch.tensor([[0.0, 0, 0, 5, -1]]), False)
    assert DCP().text(view).tolist() == pytest.approx([0, 0, 0, 0.98, 0], abs=0.01)
    assert DCP().select(view).tolist() == [2, 3]
    assert "gradient" not in DCP().needs(ModelInfo("qwen2_5_vl", 32, 28, has_cls=False))


@pytest.mark.parametrize("family", ["llava_next", "llava"])
@pytest.mark.parametrize("per", ["image", "frame"])
def test_tiles_have_a_gradient_each(family: str, per: str) -> None:
    torch.set_num_threads(1)
    model, inputs = built(family), inputs_of(family, [[0, 1]])
    with (
        torch.no_grad(),
        vlmprune.prune(
            model, DCP(per=per), keep=0.3, text_tower=tower(16 if family == "llava_next" else 24)
        ) as session,
    ):
        session.question = QUESTION
        model(**inputs)
        first = session.last.kept
        session.question = "how many blue square"
        model(**inputs)
    assert [len(kept) for kept in first[0]] == [len(kept) for kept in session.last.kept[0]]
    assert any(not torch.equal(a, b) for a, b in zip(first[0], session.last.kept[0], strict=True))
