"""A small CLIP with its text tower, and tokenizers of a few words."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from harness_views import LLAVA, WIDTH, image, values
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast

from vlmprune.core.method import Method
from vlmprune.core.view import Aligned, ImageView
from vlmprune.runtime.text_tower import TextTower
from vlmprune.testing.weights import TOWER, VOCABULARY

WORDS = (
    "what", "color", "is", "the", "circle", "left", "of", "big", "red", "square", "how", "many", "are", "there",
    "right", "dark", "blue",
)  # fmt: skip
QUESTION = "What color is the big circle left of the red square"


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer with a vocabulary in which each of WORDS becomes one token."""
    letters = sorted(set("".join(WORDS)))
    tokens = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        whole = word[0]
        for letter in [*word[1:-1], word[-1] + "</w>"]:
            merges[whole, letter] = None
            tokens[whole := whole + letter] = None
    names = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: k for k, name in enumerate(names)}, merges=list(merges))  # type: ignore[arg-type]


@cache
def prompt_tokenizer() -> PreTrainedTokenizerFast:
    """Ids of the tiny models' prompts as words."""
    names = ["<pad>", "<s>", "</s>"]
    names += [WORDS[k % len(WORDS)] + "+" * (k // len(WORDS)) for k in range(VOCABULARY - 3)]
    text = Tokenizer(WordLevel({name: k for k, name in enumerate(names)}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=text, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def clip_model(image_size: int = 24, end: int | None = None, **vision: int) -> Any:
    """A CLIP model with random strong weights; `end` is what its config calls the end token."""
    tokenizer = clip_tokenizer()
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    end = tokenizer.eos_token_id if end is None else end
    text = {**sizes, "vocab_size": len(tokenizer), "eos_token_id": end, "bos_token_id": tokenizer.bos_token_id}
    towers: dict[str, Any] = {
        "vision_config": {**TOWER, "image_size": image_size, **vision},
        "text_config": text,
    }
    model = CLIPModel(CLIPConfig(**towers, projection_dim=20))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():  # the default would leave attention nearly uniform
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.2 * noise
    return model.eval()


@cache
def tower(image_size: int = 24, end: int | None = None) -> TextTower:
    return TextTower(clip_model(image_size, end), clip_tokenizer(), prompt_tokenizer())


def shown_with_text(asked: Method, clip: bool = True, **case: Any) -> ImageView:
    """A view of `test_methods.image`, with the instruction as well."""
    view = image(asked, **case)
    numbers = values(case.get("kind", "noise"), view.n + 9, WIDTH, seed=7 + case.get("seed", 0))
    numbers = numbers.to(case.get("dtype", torch.float32))
    texts = case.get("texts", 6)
    view.signals = {**view.signals, "aligned": Aligned(numbers[9:], numbers[:texts], clip)}
    return view


def of_text(keep: int, visual: Tensor, text: Tensor, clip: bool = True, **signals: Any) -> ImageView:
    view = {"aligned": Aligned(visual, text, clip), **signals}
    return ImageView(keep, torch.arange(len(visual)), None, LLAVA, view)
