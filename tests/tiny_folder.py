"""A saved LLaVA with random strong weights, a word tokenizer and a processor: what `--model FOLDER` takes."""

from __future__ import annotations

from pathlib import Path

from tiny import strengthen
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlmprune.assets.questions import WORD_PATTERN, vocabulary

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def save_llava(folder: Path) -> Path:
    """Write a LLaVA of 49 visual tokens and four decoder layers; it loads in well under a second."""
    words = {word: k for k, word in enumerate((*SPECIALS, *vocabulary()))}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokens.normalizer = normalizers.Lowercase()
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    tokenizer.image_token, tokenizer.image_token_id = "<image>", words["<image>"]
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
