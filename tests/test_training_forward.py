"""The packed training forward equals the Hugging Face forward of each question alone."""

import numpy as np
import pytest
import torch

from training.backend_llava import LlavaBackend
from training.packing import draw_questions, make_labels, pack
from training.tokenizer import build_tokenizer, encode, word_ids
from vlmprune.assets.questions import SCENE_TASKS, Question, split_words
from vlmprune.assets.world import COLORS, SHAPES, SIZES, draw_scene


@pytest.fixture(scope="module")
def backend() -> LlavaBackend:
    return LlavaBackend()


def test_llava_packed_logits_equal_single_questions(backend: LlavaBackend) -> None:
    torch.manual_seed(0)
    ids = word_ids(backend)
    model = backend.build(len(ids)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the initial weights, so that attention is not uniform
            if parameter.ndim > 1:
                parameter.mul_(3)
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng) for _ in range(2)]
    mix = dict.fromkeys(SCENE_TASKS, 1.0)
    rows = [draw_questions(s, rng, mix, first_wording_share=0.0, two_option_share=0.0) for s in scenes]
    batch, kept = pack(rows, 80, backend, ids)
    pixels = backend.pixels(np.stack([scene.image for scene in scenes]))
    with torch.no_grad():
        packed = backend.forward(model, pixels, (112, 112), batch.ids, batch.segment, batch.offset)
    before = [ids["<s>"], ids["USER:"], *[ids["<image>"]] * 196]
    for b, questions in enumerate(kept):
        for k, question in enumerate(questions):
            asked = [*encode(question.text, ids), ids["ASSISTANT:"], *encode(question.answer, ids)]
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([before + asked]), pixel_values=pixels[b : b + 1]).logits[0]
            here = packed.logits[b, batch.segment[b] == k]
            torch.testing.assert_close(here, alone[len(before) :], atol=2e-5, rtol=0)


def test_processor_gives_the_training_inputs(backend: LlavaBackend) -> None:
    ids = word_ids(backend)
    processor = backend.processor(build_tokenizer(backend, bos_token="<s>", image_token="<image>"))
    scene = draw_scene(np.random.default_rng(1))
    messages = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What color is the circle?"}],
        }
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=scene.image, text=prompt, return_tensors="pt")
    words = encode("what color is the circle ?", ids)
    expected = [ids["<s>"], ids["USER:"], *[ids["<image>"]] * 196, *words, ids["ASSISTANT:"]]
    assert inputs["input_ids"][0].tolist() == expected
    torch.testing.assert_close(inputs["pixel_values"], backend.pixels(scene.image[None]), atol=1e-6, rtol=0)
    assert processor.tokenizer("Is the zebra (a) red?")["input_ids"] == [
        ids.get(word, ids["<unk>"]) for word in split_words("is the zebra (a) red ?")
    ]


def test_labels_follow_the_masks() -> None:
    scene = draw_scene(np.random.default_rng(3))
    labels = make_labels([scene], 14, 14)
    x, y = (int(c) // 8 for c in scene.objects[0].center)
    assert labels.present.sum() >= 2
    assert labels.shape.shape == (1, 196)
    assert int(labels.row[y * 14 + x]) == y and int(labels.column[y * 14 + x]) == x


def test_hints_tell_the_facts_of_the_object_that_a_word_names(backend: LlavaBackend) -> None:
    rng = np.random.default_rng(11)
    scene = next(s for s in (draw_scene(rng) for _ in range(50)) if len(s.objects) == 1)
    thing = scene.objects[0]
    question = Question("exist", f"is there a {thing.color} {thing.shape} ?", "yes")
    batch, _ = pack([[question]], 16, backend, word_ids(backend), [scene], (14, 14))
    place = [int(thing.center[1] / 8), int(thing.center[0] / 8)]
    kinds = [SHAPES.index(thing.shape), list(COLORS).index(thing.color), list(SIZES).index(thing.size)]
    assert batch.hint[0, 4].tolist() == [*kinds, *place, -100, -100]
    assert (batch.hint[0, :3] == -100).all() and (batch.hint[0, 5:] == -100).all()


def test_hints_tell_which_option_is_the_answer(backend: LlavaBackend) -> None:
    scene = draw_scene(np.random.default_rng(0))
    question = Question("option", "which option is red ? (a) blue (b) red", "(b)")
    batch, _ = pack([[question]], 16, backend, word_ids(backend), [scene], (14, 14))
    assert batch.hint[0, [6, 8], 5:].tolist() == [[0, 0], [1, 1]]
