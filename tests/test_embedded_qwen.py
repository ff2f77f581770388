"""The embedded Qwen2.5-VL: its training forward, its processor, and the shipped folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils import is_torchvision_available

from training.backend_qwen import PLACE_LAYER, SIZES, QwenBackend
from training.packing import draw_questions, pack
from training.tokenizer import build_tokenizer, word_ids
from vlmprune.assets.questions import SCENE_TASKS, Question, ask_all, normalise_answer
from vlmprune.assets.world import draw_scene
from vlmprune.core.errors import UserError
from vlmprune.models.processors import ImageOnlyQwenProcessor, load_processor

SHIPPED = Path(__file__).parents[1] / "src" / "vlmprune" / "assets" / "qwen2_5_vl"
shipped = pytest.mark.skipif(not (SHIPPED / "model.safetensors").exists(), reason="not trained yet")


@pytest.fixture(scope="module")
def backend() -> QwenBackend:
    return QwenBackend()


@pytest.fixture(scope="module")
def model(backend: QwenBackend) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    model = backend.build(len(word_ids(backend))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from uniform attention
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def processor(backend: QwenBackend) -> ImageOnlyQwenProcessor:
    return backend.processor(build_tokenizer(backend, **backend.token_names))


def chat(processor: ImageOnlyQwenProcessor, image: np.ndarray, text: str) -> dict[str, torch.Tensor]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize("size", SIZES)
def test_packed_forward_equals_hugging_face(backend, model, processor, size) -> None:
    ids = word_ids(backend)
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, size) for _ in range(2)]
    mix = dict.fromkeys(SCENE_TASKS, 0.4)
    rows = [draw_questions(s, rng, mix, first_wording_share=0.0, two_option_share=0.0) for s in scenes]
    batch, kept = pack(rows, 120, backend, ids)
    pixels = backend.pixels(np.stack([scene.image for scene in scenes]))
    constants = backend.constants(size, torch.device("cpu"))
    with torch.no_grad():
        packed = backend.forward(model, pixels, constants, batch.ids, batch.segment, batch.offset)
    for b, questions in enumerate(kept):
        assert questions
        for k, question in enumerate(questions):
            inputs = chat(processor, scenes[b].image, question.text)
            with torch.no_grad():
                alone = model(**inputs, output_hidden_states=True)
            here = batch.segment[b] == k
            asked = int((here & (batch.target[b] == -100)).sum()) + 1  # question and "<|assistant|>"
            assert inputs["input_ids"][0, -asked:].tolist() == batch.ids[b, here][:asked].tolist()
            here_logits = packed.logits[b, here][:asked]
            torch.testing.assert_close(here_logits, alone.logits[0, -asked:], atol=4e-6, rtol=0)
            slots = inputs["input_ids"][0] == model.config.image_token_id
            placed = alone.hidden_states[PLACE_LAYER + 1][0, slots]
            torch.testing.assert_close(packed.placed[b], placed, atol=2e-5, rtol=0)


def test_text_without_an_image_equals_hugging_face(backend, model, processor) -> None:
    ids = word_ids(backend)
    question = Question("option", "which option is red ? (a) blue (b) red (c) cyan (d) white", "(b)")
    batch, _ = pack([[question, question]], 60, backend, ids)
    with torch.no_grad():
        packed = backend.forward_text(model, batch.ids, batch.segment, batch.offset)
        text = processor.apply_chat_template(
            [{"role": "user", "content": question.text}], add_generation_prompt=True, tokenize=False
        )
        alone = model(**processor.tokenizer(text, return_tensors="pt")).logits[0]
    for k in range(2):
        asked = packed[0, batch.segment[0] == k][:-1]  # without the answer's one token
        torch.testing.assert_close(asked, alone[-len(asked) :], atol=4e-6, rtol=0)


def test_one_graph_serves_every_size(backend) -> None:
    shapes = {tuple(part.shape for part in backend.constants(size, torch.device("cpu"))) for size in SIZES}
    assert len(shapes) == 1


def test_windows_are_real(model) -> None:
    vision = model.config.vision_config
    assert set(vision.fullatt_block_indexes) < set(range(vision.depth))
    assert vision.depth - 1 in vision.fullatt_block_indexes


def test_processor_round_trip(backend, model, processor, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "Qwen2_5_VLProcessor"
    loaded = load_processor(tmp_path)
    if not is_torchvision_available():
        assert isinstance(loaded, ImageOnlyQwenProcessor)
    image = draw_scene(np.random.default_rng(1), (160, 90)).image
    first, second = (chat(p, image, "What color is the circle?") for p in (processor, loaded))
    assert first.keys() == second.keys()
    assert first.keys() >= {"input_ids", "pixel_values", "image_grid_thw", "mm_token_type_ids"}
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_hub_style_folder_without_torchvision(backend, model, processor, tmp_path: Path) -> None:
    """Older checkpoints keep preprocessor_config.json and chat_template.json apart."""
    model.config.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": 5,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 400,
        "max_pixels": 14400,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    inputs = chat(load_processor(tmp_path), np.zeros((90, 160, 3), np.uint8), "what color is the circle ?")
    assert inputs["image_grid_thw"].tolist() == [[1, 18, 32]]
    assert int(inputs["mm_token_type_ids"].sum()) == 144


def test_no_processor_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No processor"):
        load_processor(tmp_path)


@shipped
def test_shipped_folder_is_small_and_answers() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 8_000_000
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    processor = load_processor(SHIPPED)
    rng = np.random.default_rng(7)
    right = total = 0
    for k in range(6):
        scene = draw_scene(rng, SIZES[k % len(SIZES)], photos="held_out")
        for question in ask_all(scene, rng):
            inputs = chat(processor, scene.image, question.text)
            out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
            said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right += normalise_answer(said) == question.answer
            total += 1
    assert right / total >= 0.85, f"{right} of {total}"
