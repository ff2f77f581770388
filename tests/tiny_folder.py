"""Saved tiny models with random strong weights, a word tokenizer and a processor: what `--model FOLDER` takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AyaVisionProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Gemma3Processor,
    Idefics2Processor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    Ovis2Processor,
    PaddleOCRVLProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    VideoLlavaImageProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from vlmprune.assets.questions import WORD_PATTERN, vocabulary
from vlmprune.testing import FAMILIES, weights
from vlmprune.testing.generic import USUAL
from vlmprune.testing.weights import strengthen

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% elif part['type'] == 'video' %}<video> {% else %}{{ part['text'] }}"
    "{% endif %}"
    "{% endfor %}{% endfor %}"
)


def _tokenizer(words: dict[str, int], specials: list[str], **tokens: str) -> PreTrainedTokenizerFast:
    """One token a word; `tokens` become attributes, as processors look them up, with their ids."""
    text = Tokenizer(WordLevel(words, unk_token="<unk>"))
    text.normalizer = normalizers.Lowercase()
    text.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")]
    )
    text.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=text,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=tokens,
    )


def save_llava(folder: Path) -> Path:
    """Write a LLaVA of 49 visual tokens and four decoder layers; it loads in well under a second."""
    words = {word: k for k, word in enumerate((*SPECIALS, *vocabulary()))}
    tokenizer = _tokenizer(words, ["<image>"], image_token="<image>")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=112, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=words["<image>"], image_seq_length=49,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    model = strengthen(LlavaForConditionalGeneration(config))
    model.generation_config.suppress_tokens = [words["<image>"]]
    model.generation_config.eos_token_id = 3
    model.save_pretrained(folder)
    side = {"height": 112, "width": 112}
    images = CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size=side)
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """Write the CLIP model to whose vision tower that of `save_llava` belongs, with a tokenizer of the same words."""
    words = {word: k for k, word in enumerate((*SPECIALS, *vocabulary()))}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    vision = {**small, "num_hidden_layers": 3, "image_size": 112, "patch_size": 16}
    text = {**small, "num_hidden_layers": 2, "vocab_size": len(words), "bos_token_id": 2, "eos_token_id": 3}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=20))
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.parameters():
        if parameter.dim() > 1:
            parameter.data = 0.12 * torch.randn(parameter.shape, generator=generator)
    clip.save_pretrained(folder)
    _tokenizer(words, []).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- families with their processors

QUESTION_WORDS = ("what", "color", "is", "the", "circle", "?")
NAMES = {  # of the special ids of vlmprune.testing.weights
    weights.PAD: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", weights.WHOLE_IMAGE: "<global-img>",
    weights.AROUND_IMAGE: "<fake_token_around_image>", weights.LINE_BREAK: "\n", weights.DOUBLE_BREAK: "\n\n",
    weights.IMAGE_BEGIN: "<start_of_image>", weights.IMAGE_END: "<end_of_image>", weights.IMAGE: "<image>",
    weights.VIDEO: "<video>", weights.VISION_START: "<img>", weights.VISION_END: "</img>",
    **dict(zip(weights.TILES, ("<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>", "<row_2_col_2>"), strict=True)),
}  # fmt: skip


OVIS_NAMES = {
    **NAMES, 84: "<IMG_START>", 85: "<IMG_GRID>", 86: "<IMG_COL>", 87: "<IMG_ROW>", 88: "<IMG_END>",
    weights.IMAGE: "<IMG_ATOM>", 95: "<image>",
}  # fmt: skip


LFM2_NAMES = {
    **NAMES, weights.WHOLE_IMAGE: "<|img_thumbnail|>",
    **dict(zip(weights.TILES, (f"<|img_row_{i}_col_{j}|>" for i in (1, 2) for j in (1, 2)), strict=True)),
}  # fmt: skip


def _family_tokenizer(names: Mapping[int, str] = NAMES, **tokens: str) -> PreTrainedTokenizerFast:
    ids = range(weights.VOCABULARY)
    ordinary = iter([*QUESTION_WORDS, *(f"w{k}" for k in ids)])
    words = {names[k] if k in names else next(ordinary): k for k in ids}
    return _tokenizer(words, [name for k, name in names.items() if k > 3], **{"image_token": "<image>", **tokens})


def _llava() -> ProcessorMixin:
    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    return LlavaProcessor(
        images, _family_tokenizer(), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def _llava_next() -> ProcessorMixin:
    side = {"height": 16, "width": 16}
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=side, image_grid_pinpoints=weights.pinpoints(16)
    )
    return LlavaNextProcessor(
        images, _family_tokenizer(), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def _gemma3() -> ProcessorMixin:
    tokenizer = _family_tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>")
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, image_seq_length=16)
    template = TEMPLATE.replace("<image>", "<start_of_image>")
    return Gemma3Processor(images, tokenizer, image_seq_length=16, chat_template=template)


def _paligemma() -> ProcessorMixin:
    """Without a chat template, as its checkpoints have none."""
    images = SiglipImageProcessorPil(size={"height": 24, "width": 24})
    images.image_seq_length = 36
    return PaliGemmaProcessor(images, _family_tokenizer())


def _idefics3() -> ProcessorMixin:
    images = Idefics3ImageProcessorPil(size={"longest_edge": 48}, max_image_size={"longest_edge": 24})
    return Idefics3Processor(images, _family_tokenizer(), image_seq_len=9, chat_template=TEMPLATE)


def _aya_vision() -> ProcessorMixin:
    images = GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}, max_patches=4)
    return AyaVisionProcessor(
        images, _family_tokenizer(), patch_size=4, img_size=24, downsample_factor=2, img_patch_token="<image>",
        start_of_img_token="<start_of_image>", end_of_img_token="<end_of_image>", tile_token="<row_1_col_1>",
        tile_global_token="<global-img>", chat_template=TEMPLATE,
    )  # fmt: skip


def _ovis2() -> ProcessorMixin:
    images = Ovis2ImageProcessorPil(
        size={"height": 24, "width": 24}, crop_to_patches=True, max_patches=4, use_covering_area_grid=False
    )
    return Ovis2Processor(images, _family_tokenizer(OVIS_NAMES), image_seq_length=9, chat_template=TEMPLATE)


def _idefics2() -> ProcessorMixin:
    images = Idefics2ImageProcessorPil(size={"shortest_edge": 12, "longest_edge": 24})
    tokenizer = _family_tokenizer(image_boundary_token="<fake_token_around_image>")
    return Idefics2Processor(images, tokenizer, image_seq_len=5, chat_template=TEMPLATE)


def _pixtral(side: int) -> ProcessorMixin:
    """With `side` x `side` patches a slot.

    The file of its processor imports torchvision through that of another image processor, for one function, which that
    of PIL's has as well.
    """
    package = "transformers.models.pixtral"
    with patch.dict(sys.modules, {f"{package}.image_processing_pixtral": image_processing_pil_pixtral}):
        kind = import_module(f"{package}.processing_pixtral").PixtralProcessor
    images = image_processing_pil_pixtral.PixtralImageProcessorPil(patch_size=4, size={"longest_edge": 32})
    return kind(
        images, _family_tokenizer(), patch_size=4, spatial_merge_size=side, chat_template=TEMPLATE,
        image_token="<image>", image_break_token="\n", image_end_token="<end_of_image>",
    )  # fmt: skip


def _cohere2_vision() -> ProcessorMixin:
    """Its image processor needs torchvision."""
    images = transformers.Cohere2VisionImageProcessor(size={"height": 24, "width": 24}, patch_size=3, max_patches=4)
    tokenizer = _family_tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", img_line_break_token="\n")
    return transformers.Cohere2VisionProcessor(images, tokenizer, chat_template=TEMPLATE)


def _lfm2_vl() -> ProcessorMixin:
    """The same. A picture of more than nine slots is cut into tiles of 24 x 24 pixels."""
    images = transformers.Lfm2VlImageProcessor(
        encoder_patch_size=4, tile_size=24, min_tiles=2, max_tiles=4, min_image_tokens=4, max_image_tokens=9,
        size={"height": 24, "width": 24},
    )  # fmt: skip
    tokenizer = _family_tokenizer(LFM2_NAMES, image_start_token="<start_of_image>", image_end_token="<end_of_image>")
    return transformers.Lfm2VlProcessor(images, tokenizer, chat_template=TEMPLATE)


def _paddleocr_vl() -> ProcessorMixin:
    images = PaddleOCRVLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 768, "longest_edge": 1536})
    return PaddleOCRVLProcessor(images, _family_tokenizer(), chat_template=TEMPLATE)


PROCESSORS: dict[str, Callable[[], ProcessorMixin]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "idefics3": _idefics3,
    "paddleocr_vl": _paddleocr_vl,
    "aya_vision": _aya_vision,
    "ovis2": _ovis2,
    "idefics2": _idefics2,
    "llava with Pixtral": lambda: _pixtral(1),
    "mistral3": lambda: _pixtral(2),
    "cohere2_vision": _cohere2_vision,
    "lfm2_vl": _lfm2_vl,
}
QWEN_TEMPLATE = TEMPLATE.replace("<image> ", "<img><image></img>").replace("<video> ", "<img><video></img>")
# Processors that name a video processor cannot be built without torchvision: their files, as checkpoints have them.
FILES: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "qwen": (
        lambda: Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 768, "longest_edge": 1536}),
        {}, QWEN_TEMPLATE,
    ),
    "glm4": (  # its sizes count the pixels of both frames behind a patch
        lambda: Glm4vImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 1536, "longest_edge": 3072}),
        {}, TEMPLATE,
    ),
    "glm_ocr": (  # its model type has no processor, its checkpoints name one
        lambda: Glm46VImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 1536, "longest_edge": 3072}),
        {"processor_class": "Glm46VProcessor"}, TEMPLATE,
    ),
    "internvl": (
        lambda: GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}, crop_to_patches=True, max_patches=4),
        {"processor_class": "InternVLProcessor", "image_seq_length": 9}, TEMPLATE,
    ),
    "smolvlm": (
        lambda: SmolVLMImageProcessorPil(size={"longest_edge": 48}, max_image_size={"longest_edge": 24}),
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 9}, TEMPLATE,
    ),
    "llava_onevision": (
        lambda: LlavaOnevisionImageProcessorPil(
            size={"height": 20, "width": 20}, image_grid_pinpoints=weights.pinpoints(20)
        ),
        {
            "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 25,
            "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_2",
        },
        TEMPLATE,
    ),
    "llava_next_video": (
        lambda: LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16},
            image_grid_pinpoints=weights.pinpoints(16),
        ),
        {
            "processor_class": "LlavaNextVideoProcessor", "patch_size": 4, "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
            # where torchvision is installed, transformers looks for it here
            "video_processor": {"video_processor_type": "LlavaNextVideoVideoProcessor"},
        },
        TEMPLATE,
    ),
    "video_llava": (
        lambda: VideoLlavaImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        {"processor_class": "VideoLlavaProcessor", "patch_size": 4}, TEMPLATE,
    ),
}  # fmt: skip


def save_family(family: str, folder: Path) -> Path:
    """Write a tiny model with the processor of its family."""
    (FAMILIES.get(family) or USUAL[family]).build().save_pretrained(folder)
    if family in PROCESSORS:
        PROCESSORS[family]().save_pretrained(folder)
        return folder
    images, settings, template = next(files for name, files in FILES.items() if family.startswith(name))
    images().save_pretrained(folder)
    tokens = {"image_token": "<image>", "video_token": "<video>"}
    if family == "internvl":
        tokens |= {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<image>"}
    _family_tokenizer(**tokens).save_pretrained(folder)
    if settings:
        (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    return folder
