"""The shipped LLaVA: loads offline, answers, is what it says it is."""

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from vlmprune.assets import embedded_names, embedded_path, load_embedded
from vlmprune.assets.questions import Question, ask_all, normalise_answer
from vlmprune.assets.world import Scene, draw_scene
from vlmprune.core.errors import UserError


@pytest.fixture(scope="module")
def loaded() -> tuple:
    return load_embedded("llava")


def reply(loaded: tuple, scene: Scene, text: str) -> str:
    model, processor = loaded
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=scene.image, text=prompt, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_real_class_with_cls_token_and_196_slots(loaded: tuple) -> None:
    model, _ = loaded
    assert isinstance(model, LlavaForConditionalGeneration) and not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    vision = model.config.vision_config
    assert (vision.image_size // vision.patch_size) ** 2 == 196
    assert model.config.vision_feature_layer == -2
    assert sum(path.stat().st_size for path in embedded_path("llava").iterdir()) < 6_500_000


def test_answers_held_out_scenes(loaded: tuple) -> None:
    asked: list[tuple[Scene, Question]] = []
    for seed in range(4):
        rng = np.random.default_rng((99, seed))
        scene = draw_scene(rng, photos="held_out")
        asked += [(scene, question) for question in ask_all(scene, rng)]
    right = sum(normalise_answer(reply(loaded, scene, q.text)) == q.answer for scene, q in asked)
    assert right / len(asked) >= 0.9


def test_capitals_glued_signs_and_unknown_words_are_taken(loaded: tuple) -> None:
    rng = np.random.default_rng(1)
    scene = draw_scene(rng)
    thing = scene.objects[0]
    assert reply(loaded, scene, f"How big is the {thing.color} {thing.shape}?") == thing.size
    assert loaded[1].tokenizer("zebra")["input_ids"] == [loaded[1].tokenizer.unk_token_id]


def test_names_and_errors() -> None:
    assert "llava" in embedded_names()
    with pytest.raises(UserError, match='No embedded model is named "clip"'):
        embedded_path("clip")
