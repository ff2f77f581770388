"""Methods that make new tokens: their reference is a forward on embeddings put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import RAGGED, STEPS, TOLERANCE, alone, built, generate, largest
from harness_embeddings import assemble, greedy_on_embeddings
from torch import Tensor, nn

import vlmprune
from vlmprune.core.view import Grid, ImageView, TowerRows
from vlmprune.methods.pixels.downsample import Downsample
from vlmprune.methods.vision.visionzip import VisionZip
from vlmprune.models import adapter_for
from vlmprune.scores import reference
from vlmprune.testing.weights import IMAGE


@torch.no_grad()
@pytest.mark.parametrize("row", [0, 1])
def test_visionzip_on_llava(row: int) -> None:
    model, inputs = built("llava"), alone("llava", RAGGED, row)
    with vlmprune.prune(model, "visionzip:12"):
        tokens, logits = generate(model, inputs)
    tower = model.model.vision_tower
    states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    layer = tower.encoder.layers[len(tower.encoder.layers) - 2]  # makes hidden_states[-2]
    heads = layer.self_attn.num_heads
    normed = layer.layer_norm1(states[-3])
    query, key = (
        projection(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    maps = reference.attention(query, key, layer.self_attn.head_dim**-0.5)
    images = []
    for image in range(len(states[-2])):
        signals = {
            "rows": TowerRows(states[-2][image, 1:], states[-2][image, :1]),
            "attention": maps[image].mean(0)[0, 1:],
            "keys": TowerRows(key[image].mean(0)[1:], key[image].mean(0)[:1]),
        }
        view = ImageView(12, torch.arange(36), Grid(6, 6), adapter_for(model).info, signals)
        images.append((model.model.multi_modal_projector(VisionZip().select(view).features), torch.zeros(1, 12).long()))
    embeds, _ = assemble(model, inputs["input_ids"], images, torch.zeros(1, inputs["input_ids"].shape[1]).long())
    counted = torch.arange(embeds.shape[1])[None]
    assert largest(greedy_on_embeddings(model, embeds, counted, tokens[0]), logits[0]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("row", [0, 1])
def test_visionzip_on_qwen(row: int) -> None:
    model, inputs = built("qwen2_5_vl"), alone("qwen2_5_vl", RAGGED, row)
    with vlmprune.prune(model, "visionzip:9"):
        tokens, logits = generate(model, inputs)
    visual, thw = model.model.visual, inputs["image_grid_thw"]
    last, keys = visual.blocks[-1].attn, []
    handle = last.qkv.register_forward_hook(lambda module, args, output: keys.append(output))
    rotations: list[Any] = []
    other = visual.rotary_pos_emb.register_forward_hook(lambda module, args, output: rotations.append(output))
    features = model.model.get_image_features(inputs["pixel_values"], thw).pooler_output
    handle.remove(), other.remove()
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
    from transformers.vision_utils import get_vision_window_index

    window, _ = get_vision_window_index(thw, spatial_merge_size=2, window_size=16, patch_size=4)
    raster = torch.argsort(window)
    q, k, _ = keys[0].unflatten(-1, (3, last.num_heads, -1)).unbind(1)
    cos, sin = (visual.permute_input_for_window_attn(part, window, len(q)) for part in rotations[0])
    q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], image_grid_thw=thw, attention_mask=inputs["attention_mask"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )  # fmt: skip
    columns = (inputs["input_ids"][0] == IMAGE).nonzero().squeeze(1)
    images, patch, slot = [], 0, 0
    for t, h, w in thw.tolist():
        size, count = t * h * w, t * h * w // 4
        one = slice(patch, patch + size)
        attention = reference.attention(q[one].transpose(0, 1)[None], k[one].transpose(0, 1)[None], last.scaling)[0]
        order = raster[slot : slot + count] - slot

        def pooled(rows: Tensor, order: Tensor = order) -> Tensor:
            return rows.unflatten(0, (-1, 4)).mean(1)[order]

        signals = {
            "rows": TowerRows(features[len(images)], None),
            "attention": pooled(attention.mean((0, 1))),
            "keys": TowerRows(pooled(k[one].mean(1)), None),
        }
        view = ImageView(9, torch.arange(count), Grid(h // 2, w // 2), adapter_for(model).info, signals)
        made = VisionZip().select(view)
        images.append((made.features, positions[:, 0, columns[slot + made.anchors]]))
        patch, slot = patch + size, slot + count
    embeds, where = assemble(model, inputs["input_ids"], images, positions[:, 0])
    assert largest(greedy_on_embeddings(model, embeds, where[:, None], tokens[0]), logits[0]) < TOLERANCE


@torch.no_grad()
def test_downsample_on_llava_is_a_smaller_image() -> None:
    model, inputs = built("llava"), alone("llava", RAGGED, 0)
    with vlmprune.prune(model, "downsample:17") as session:
        tokens, logits = generate(model, inputs)
    small = nn.functional.interpolate(inputs["pixel_values"], size=(16, 16), mode="bicubic", antialias=True)
    features = model.model.get_image_features(small, interpolate_pos_encoding=True).pooler_output
    images = [(image, torch.zeros(1, 16).long()) for image in features]
    assert [len(image) for image in features] == [16, 16] == [len(kept) for kept in session.last.kept[0]]
    embeds, _ = assemble(model, inputs["input_ids"], images, torch.zeros(1, inputs["input_ids"].shape[1]).long())
    counted = torch.arange(embeds.shape[1])[None]
    assert largest(greedy_on_embeddings(model, embeds, counted, tokens[0]), logits[0]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_downsample_on_qwen_is_vanilla_on_the_smaller_image(family: str) -> None:
    """Deepstack features (Qwen3-VL) follow their tokens too."""
    model, inputs = built(family), alone(family, RAGGED, 1)
    with vlmprune.prune(model, "downsample:0.5") as session:
        tokens, logits = generate(model, inputs)
    (_, h, w), patch = inputs["image_grid_thw"][0].tolist(), 4
    grid = Downsample().resize(Grid(h // 2, w // 2), round(0.5 * h * w / 4))
    assert session.last.tokens[0] == (h * w // 4, grid.size) and grid.size < h * w // 4
    rows = inputs["pixel_values"].view(h // 2, w // 2, 2, 2, 3, 2, patch, patch)
    picture = torch.empty(2, 3, h * patch, w * patch)
    for r in range(h):
        for c in range(w):
            tile = rows[r // 2, c // 2, r % 2, c % 2]  # channel, depth, patch, patch
            picture[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] = tile.transpose(0, 1)
    size = (grid.rows * 2 * patch, grid.cols * 2 * patch)
    picture = nn.functional.interpolate(picture, size=size, mode="bicubic", antialias=True)
    flat = []
    for r in range(grid.rows):
        for c in range(grid.cols):
            for i in range(2):
                for j in range(2):
                    top, left = (2 * r + i) * patch, (2 * c + j) * patch
                    flat.append(picture[:, :, top : top + patch, left : left + patch].transpose(0, 1).reshape(-1))
    ids = inputs["input_ids"][0]
    where = (ids == IMAGE).nonzero().squeeze(1)
    short = torch.cat([ids[: where[0]], ids[where][: grid.size], ids[where[-1] + 1 :]])[None]
    smaller = {
        "input_ids": short,
        "attention_mask": torch.ones_like(short),
        "mm_token_type_ids": (short == IMAGE).int(),
        "pixel_values": torch.stack(flat),
        "image_grid_thw": torch.tensor([[1, grid.rows * 2, grid.cols * 2]]),
    }
    expected_tokens, expected = generate(model, smaller)
    assert torch.equal(tokens, expected_tokens) and len(tokens[0]) == STEPS
    assert largest(logits, expected) < TOLERANCE


@torch.no_grad()
def test_fastv_in_order_of_score_as_uniprunebench_has_it() -> None:
    """The kept tokens go on by falling score, each with the position it had; the layers are run by hand here."""
    model, inputs = built("llava"), alone("llava", RAGGED, 1)
    with vlmprune.prune(model, "fastv(compat=uniprune)@2:0.3") as session:
        logits = generate(model, inputs)[1]
    assert session.last.tokens == [(36, 10)]  # 10.8 rounded down
    text, ids = model.model.language_model, inputs["input_ids"]
    hidden = model.model.get_input_embeddings()(ids)
    hidden[ids == IMAGE] = torch.cat(list(model.model.get_image_features(inputs["pixel_values"]).pooler_output))
    positions = torch.arange(ids.shape[1])[None]
    maps = built("llava", "eager")(**inputs, output_attentions=True).attentions[1]
    columns = (ids[0] == IMAGE).nonzero().squeeze(1)
    by_score = columns[maps[0].mean(0)[-1, columns].argsort(descending=True)][:10]
    order = torch.cat([torch.arange(int(columns[0])), by_score, torch.arange(int(columns[-1]) + 1, ids.shape[1])])
    for number, layer in enumerate(text.layers):
        if number == 2:
            hidden, positions = hidden[:, order], positions[:, order]
        hidden = layer(hidden, position_embeddings=text.rotary_emb(hidden, positions), attention_mask=None)
    assert largest(model.lm_head(text.norm(hidden))[:, -1], logits[:, 0]) < TOLERANCE
