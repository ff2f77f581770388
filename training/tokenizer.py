"""The word-level tokenizer of the embedded models."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from training.backend import Backend
from vlmprune.assets.questions import WORD_PATTERN, split_words, vocabulary


def word_ids(backend: Backend) -> dict[str, int]:
    """Token ids: the backend's special tokens, then the vocabulary."""
    return {word: k for k, word in enumerate((*backend.specials, *vocabulary()))}


def encode(text: str, ids: dict[str, int]) -> list[int]:
    """Ids of a text without special tokens; equal to the tokenizer's for texts inside the vocabulary."""
    return [ids[word] for word in split_words(text)]


def build_tokenizer(backend: Backend, **special: str) -> PreTrainedTokenizerFast:
    """The Hugging Face tokenizer: lower case, signs apart, unknown words to `backend.unknown`.

    Args:
        backend: the model family.
        special: further named special tokens, for instance bos_token or image_token.
    """
    inner = Tokenizer(models.WordLevel(word_ids(backend), unk_token=backend.unknown))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=backend.specials[0],
        unk_token=backend.unknown,
        eos_token=backend.end,
        additional_special_tokens=list(backend.specials),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **special,
    )
