"""The tiny Qwen2.5-VL: a tower with window attention, a 2x2 merger, a decoder with M-RoPE.

Transformers runs the tower image by image and window by window, and knows no packed questions. Training
needs neither restriction: all images of a batch have one patch grid, so the tower runs as one dense batch,
and all questions of an image share one copy of its visual tokens. `tests/test_embedded_qwen.py` holds this
forward to the Hugging Face one (2e-6 in float32).

Shapes: B images, P patches an image, S = P / 4 visual slots, F = 3 tokens before the image.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from training.backend import Forward
from training.cuts import Kept, Late
from training.decoder import attend, decode, rms_norm, rotary, rotate
from vlmprune.models.processors import ImageOnlyQwenProcessor

PATCH = 5  # pixels a patch side
MERGE = 2  # patches a slot side
CELL = PATCH * MERGE  # pixels a slot side
WINDOW = 4  # slots a window side
WINDOWS = 12  # windows that every grid is padded to, so that all of them run through one compiled graph
SIZES = ((120, 120), (160, 90), (90, 160))  # (width, height) of the training images; 144 slots each
DECODER_LAYERS = 8
PLACE_LAYER = 1  # the decoder layer after which visual tokens should know their place
NAMING_LAYER = 2  # the one after which words that name an object should know it
IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)
SPECIALS = (
    "<|endoftext|>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|user|>",
    "<|assistant|>",
)
_ID = {word: k for k, word in enumerate(SPECIALS)}
_HEAD = (_ID["<|im_start|>"], _ID["<|user|>"], _ID["<|vision_start|>"])  # before the image
CHAT_TEMPLATE = (
    "{{ '<|im_start|>' }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_config(words: int) -> Qwen2_5_VLConfig:
    """The configuration of the embedded model with `words` token ids.

    The rotary bases are small because the grids are: with the usual 1e6 the width axis, which owns the
    slowest frequencies of M-RoPE, would turn by 0.002 radian at most over an image of twelve slots.
    """
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": words,
            "hidden_size": 128,
            "intermediate_size": 344,
            "num_hidden_layers": DECODER_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": _ID["<|im_start|>"],
            "eos_token_id": _ID["<|im_end|>"],
            "pad_token_id": _ID["<|endoftext|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 5,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": WINDOW * CELL,
            "fullatt_block_indexes": [1, 4],
            "out_hidden_size": 128,
            "rope_parameters": {"rope_type": "axial", "rope_theta": 50.0},
        },
        image_token_id=_ID["<|image_pad|>"],
        video_token_id=_ID["<|video_pad|>"],
        vision_start_token_id=_ID["<|vision_start|>"],
        vision_end_token_id=_ID["<|vision_end|>"],
        tie_word_embeddings=True,
    )


class Grid(NamedTuple):
    """What depends on the image size alone: tensors of the same shapes for all training sizes.

    order: [S] raster index of the slot at each place of the window order; inverse: [S] the way back;
    cos, sin: [P, head_dim] rotary factors of the tower, in window order;
    gather: [12 * 64] patch (window order) at each place of the padded windows;
    scatter: [P] place of each patch in the padded windows;
    pad: [12, 1, 64] additive key mask of the padded windows;
    positions: [3, F + S + 1] M-RoPE positions of the words before the image, the slots (raster order) and
    "<|vision_end|>".
    """

    order: Tensor
    inverse: Tensor
    cos: Tensor
    sin: Tensor
    gather: Tensor
    scatter: Tensor
    pad: Tensor
    positions: Tensor


@cache
def make_grid(size: tuple[int, int]) -> Grid:
    """Constants of one image size, (width, height) in pixels, multiples of 10."""
    vision = make_config(len(SPECIALS)).vision_config
    unit = MERGE * MERGE
    rows, cols = size[1] // CELL, size[0] // CELL
    slot = torch.arange(rows * cols).view(rows, cols)
    windows = [
        slot[r : r + WINDOW, c : c + WINDOW].reshape(-1) for r in range(0, rows, WINDOW) for c in range(0, cols, WINDOW)
    ]
    order = torch.cat(windows)
    # Patches lie slot by slot, the four of a slot in raster order.
    slot_row, slot_col = order // cols, order % cols
    inner = torch.arange(unit)
    patch_row = (slot_row[:, None] * MERGE + inner // MERGE).reshape(-1)
    patch_col = (slot_col[:, None] * MERGE + inner % MERGE).reshape(-1)
    half = vision.hidden_size // vision.num_heads // 2
    frequency = vision.rope_parameters["rope_theta"] ** -(torch.arange(0, half, 2) / half)
    angle = torch.cat([patch_row[:, None] * frequency, patch_col[:, None] * frequency] * 2, dim=-1)
    full = WINDOW * WINDOW * unit
    count = max(len(windows), WINDOWS)
    gather = torch.zeros(count, full, dtype=torch.long)
    pad = torch.full((count, 1, full), -1e4)
    places, start = [], 0
    for k, window in enumerate(windows):
        n = len(window) * unit
        gather[k, :n] = torch.arange(start, start + n)
        pad[k, :, :n] = 0.0
        places.append(k * full + torch.arange(n))
        start += n
    gather, scatter = gather.view(-1), torch.cat(places)
    head, raster = len(_HEAD), torch.arange(rows * cols)
    slots = head + torch.stack([torch.zeros_like(raster), raster // cols, raster % cols])
    before = torch.arange(head).expand(3, -1)
    after = torch.full((3, 1), head + max(rows, cols))
    positions = torch.cat([before, slots, after], dim=1)
    return Grid(order, torch.argsort(order), angle.cos(), angle.sin(), gather, scatter, pad, positions)


def patchify(images: Tensor) -> Tensor:
    """uint8 images [B, H, W, 3] to normalised patches [B, P, 75], slot by slot, the slots in raster order."""
    b, height, width, _ = images.shape
    x = (images.float() / 255.0 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    x = x.view(b, height // CELL, MERGE, PATCH, width // CELL, MERGE, PATCH, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)  # B, rows, cols, 2, 2, 3, 5, 5
    return x.reshape(b, height * width // (PATCH * PATCH), -1)


def tower(model: Qwen2_5_VLForConditionalGeneration, patches: Tensor, grid: Grid) -> Tensor:
    """Patches [B, P, 75] to slot features [B, S, d], the slots in raster order."""
    visual = model.model.visual
    x = _embed(visual, patches, grid)
    for index in range(len(visual.blocks)):
        x, _ = _block(visual, index, x, grid)
    return _merge(visual, x, grid)


def _embed(visual: nn.Module, patches: Tensor, grid: Grid) -> Tensor:
    """[B, P, d] in window order."""
    # A still image fills both frames of a temporal patch with itself, so the two kernels add up.
    kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)
    cells = patches.view(len(patches), len(grid.order), MERGE * MERGE, -1)[:, grid.order]
    return functional.linear(cells.view(*patches.shape[:2], -1), kernel).float()


def _block(visual: nn.Module, index: int, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The states [B, P, d] after a block, and what its attention added to them."""
    block, heads = visual.blocks[index], visual.config.num_heads
    b, p, d = x.shape
    qkv = block.attn.qkv(rms_norm(block.norm1, x))
    q, k, v = qkv.view(b, p, 3, heads, d // heads).permute(2, 0, 3, 1, 4)  # each B, heads, P, head_dim
    q, k = rotate(q, grid.cos, grid.sin), rotate(k, grid.cos, grid.sin)
    y = attend(q, k, v) if index in visual.fullatt_block_indexes else _window_attention(q, k, v, grid)
    collected = block.attn.proj(y.transpose(1, 2).reshape(b, p, d))
    x = x + collected
    h = rms_norm(block.norm2, x)
    return x + block.mlp.down_proj(functional.silu(block.mlp.gate_proj(h)) * block.mlp.up_proj(h)), collected


def _merge(visual: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """Slot features [B, S, d] in raster order."""
    cells = rms_norm(visual.merger.ln_q, x).view(len(x), x.shape[1] // (MERGE * MERGE), -1)
    return visual.merger.mlp(cells)[:, grid.inverse]


def _window_attention(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """Attention inside windows of 64 patches; [B, heads, P, head_dim] in and out."""
    b, heads, _, d = q.shape
    full = WINDOW * WINDOW * MERGE * MERGE
    q, k, v = (t[:, :, grid.gather].view(b, heads, -1, full, d) for t in (q, k, v))
    return attend(q, k, v, grid.pad).reshape(b, heads, -1, d)[:, :, grid.scatter]


def rope_table(config: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """M-RoPE cosine and sine [..., N, head_dim] of positions [..., 3, N]. `config` is the text model's."""
    width, rope = config.hidden_size // config.num_attention_heads, config.rope_parameters
    tables = rotary(positions, width, rope["rope_theta"])  # [..., 3, N, head_dim]
    # The frequencies fall into three runs, turned by the temporal, the height and the width position.
    runs = [table.split(rope["mrope_section"] * 2, dim=-1) for table in tables]
    cos, sin = (torch.cat([run[..., k % 3, :, :] for k, run in enumerate(r)], dim=-1) for r in runs)
    return cos, sin


def cut_positions(positions: Tensor, kept: Kept) -> Tensor:
    """M-RoPE positions [B, 3, 1 + S + 1] of a picture between its two marks: what is left, [B, 3, 1 + K + 1].

    A row keeps the positions, or each axis counts the values that are left without gaps, as a smaller image's would.
    """
    head = positions[:, :, :1] + 1
    slots = positions[:, :, 1:-1].gather(2, kept.index[:, None].expand(-1, 3, -1)) - head
    there = torch.zeros(*slots.shape[:2], int(positions.max()) + 1, dtype=slots.dtype, device=slots.device)
    ranks = (there.scatter(2, slots, 1).cumsum(2) - 1).gather(2, slots)
    own = kept.original[:, None, None]
    last = torch.where(own, positions[:, :, -1:], head + ranks.amax((1, 2), keepdim=True) + 1)
    return torch.cat((positions[:, :, :1], head + torch.where(own, slots, ranks), last), dim=2)


class QwenBackend:
    """See `training.backend.Backend`."""

    name = "qwen2_5_vl"
    sizes = SIZES
    specials = SPECIALS
    unknown = "<unk>"
    assistant = "<|assistant|>"
    end = "<|im_end|>"
    cls_width: int | None = None
    token_names = {
        "bos_token": "<|im_start|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    }
    contrast_width = 128
    layers = DECODER_LAYERS
    places_features = False  # rotary positions are relative: the tower cannot know them, the decoder can

    def build(self, words: int) -> Qwen2_5_VLForConditionalGeneration:
        model = Qwen2_5_VLForConditionalGeneration(make_config(words)).float()
        generation = model.generation_config
        generation.bos_token_id, generation.eos_token_id = _ID["<|im_start|>"], _ID["<|im_end|>"]
        generation.pad_token_id = _ID["<|endoftext|>"]
        return model

    def hidden(self, model: nn.Module) -> int:
        return model.config.vision_config.out_hidden_size

    def output_map(self, model: nn.Module) -> nn.Module:
        return model.model.visual.merger.mlp[2]

    def tower(self, model: nn.Module) -> nn.Module:
        return model.model.visual

    def embedding(self, model: nn.Module) -> Tensor:
        return model.model.language_model.embed_tokens.weight

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[1] // CELL, size[0] // CELL

    def constants(self, size: tuple[int, int], device: torch.device) -> Grid:
        return Grid(*(part.to(device) for part in make_grid(size)))

    def pixels(self, images: np.ndarray) -> Tensor:
        return patchify(torch.from_numpy(images))

    def features(self, model: nn.Module, pixels: Tensor, constants: Grid) -> tuple[Tensor, None]:
        return tower(model, pixels, constants).float(), None

    def forward(
        self,
        model: nn.Module,
        pixels: Tensor,
        constants: Grid,
        ids: Tensor,
        segment: Tensor,
        offset: Tensor,
        kept: Kept | None = None,
        late: Late | None = None,
    ) -> Forward:
        features, _ = self.features(model, pixels, constants)
        table = self.embedding(model)
        shared = [table[torch.tensor(_HEAD[:-1], device=ids.device)].expand(len(ids), -1, -1)]
        positions = [constants.positions[:, : len(_HEAD) - 1].expand(len(ids), -1, -1)]
        pictures = len(features) // len(ids)
        for number in range(pictures):
            shown, places = (
                features[number::pictures],
                constants.positions[:, len(_HEAD) - 1 :].expand(len(ids), -1, -1),
            )
            if kept is not None:
                own = Kept(kept.index[number::pictures], kept.original[::pictures])
                shown = shown.gather(1, own.index[..., None].expand(-1, -1, shown.shape[2]))
                places = cut_positions(places, own)
            ends = table[torch.tensor([_HEAD[-1], _ID["<|vision_end|>"]], device=ids.device)].expand(len(ids), -1, -1)
            shared += [ends[:, :1], shown, ends[:, 1:]]
            positions.append(places - places[:, :, :1] + positions[-1][:, :, -1:] + 1)
        logits, tapped, early = self._read(
            model, torch.cat(shared, 1), torch.cat(positions, 2), ids, segment, offset, late
        )
        return Forward(features, logits, None, tapped[:, len(_HEAD) : -1], early)

    def forward_text(self, model: nn.Module, ids: Tensor, segment: Tensor, offset: Tensor) -> Tensor:
        head = torch.tensor(_HEAD[:2], device=ids.device)
        shared = self.embedding(model)[head].expand(len(ids), -1, -1)
        positions = torch.arange(len(head), device=ids.device).expand(len(ids), 3, -1)
        return self._read(model, shared, positions, ids, segment, offset)[0]

    def _read(
        self,
        model: nn.Module,
        shared: Tensor,
        positions: Tensor,
        ids: Tensor,
        segment: Tensor,
        offset: Tensor,
        late: Late | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the packed text behind `shared` embeddings, whose positions are [B, 3, prefix]; the shared states
        after `PLACE_LAYER`; the text's after `NAMING_LAYER`."""
        config, text_model = model.config.text_config, model.model.language_model
        after = (positions[:, :1, -1] + 1 + offset)[:, None].expand(-1, 3, -1)
        states, tapped, early = decode(
            text_model.layers,
            text_model.norm,
            config.num_attention_heads,
            config.num_key_value_heads,
            torch.cat((shared, text_model.embed_tokens(ids)), dim=1),
            shared.shape[1],
            segment,
            *rope_table(config, torch.cat((positions, after), dim=2)),
            PLACE_LAYER,
            NAMING_LAYER,
            late and Late(late.layer, functional.pad(late.dropped, (len(_HEAD), 1))),
        )
        table = text_model.embed_tokens.weight
        return functional.linear(states, table), tapped, early

    def contrasted(self, model: nn.Module) -> tuple[nn.Module, ...]:
        return (model.model.visual.blocks[-1],)

    def contrast(
        self, model: nn.Module, before: nn.Module, pixels: Tensor, constants: Grid
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """The mean of what the last block's attention adds: each patch's value, by the attention that it receives."""
        visual = self.tower(model)
        last = len(visual.blocks) - 1
        with torch.no_grad():
            hidden = _embed(visual, pixels, constants)
            for index in range(last):
                hidden, _ = _block(visual, index, hidden, constants)
            old = _merge(before, _block(before, last, hidden, constants)[0], constants)
        hidden, collected = _block(visual, last, hidden, constants)
        change = (_merge(visual, hidden, constants) - old).pow(2).mean() / old.var()
        return [collected.float().mean(1)], None, change

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> ImageOnlyQwenProcessor:
        images = Qwen2VLImageProcessorPil(
            patch_size=PATCH,
            merge_size=MERGE,
            temporal_patch_size=2,
            size={"shortest_edge": 20 * 20, "longest_edge": 120 * 120},
            image_mean=list(IMAGE_MEAN),
            image_std=list(IMAGE_STD),
        )
        return ImageOnlyQwenProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE)

    def export(self, model: nn.Module, tokenizer: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        model.half().save_pretrained(folder)
        model.float()
        self.processor(tokenizer).save_pretrained(folder)
