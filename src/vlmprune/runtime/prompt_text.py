"""The prompt's text as signals of one image: embeddings of its tokens, and what they share with the image's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.view import Aligned, TowerRows

if TYPE_CHECKING:
    from vlmprune.runtime.text_tower import TextTower


@dataclass
class Vocabulary:
    """A model's words as its LLM reads them.

    Attributes:
        tokenizer: the model's.
        table: token ids [n] to embeddings [n, D], the LLM's own input embeddings.
        size: how many tokens the table knows.
    """

    tokenizer: Any
    table: Callable[[Tensor], Tensor]
    size: int

    def read(self, ids: Tensor) -> str:
        """The text of these token ids, without special tokens."""
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()

    @torch.no_grad()
    def embeddings(self, text: str | Sequence[str], like: Tensor) -> Tensor:
        """[m, D] float32 embeddings of the tokens of a text, or of words, each by itself; where `like` [S, D] is.

        Raises:
            UserError: the tokenizer has tokens that the model has not.
        """
        if not text:
            return like.new_zeros(0, like.shape[1], dtype=torch.float32)
        given: Any = text if isinstance(text, str) else list(text)
        ids = self.tokenizer(given, is_split_into_words=given is not text, add_special_tokens=False).input_ids
        if max(ids, default=0) >= self.size:
            raise UserError(
                f"This tokenizer is not the model's: it has a token {max(ids)}, and the model knows {self.size} tokens."
            )
        return self.table(torch.tensor(ids, dtype=torch.long, device=like.device)).float()


@dataclass
class ImageText:
    """Text around one image of one sample.

    Attributes:
        embeds: [S, D] embeddings of the sample's prompt.
        valid: [S] its real tokens.
        image: [S] the number of each token's image, -1 for text.
        tail: tokens at its end that are not prompt.
        last: [1] column of the image's last token.
        ids: [S] token ids, or None when embeddings were given.
        tower: the text tower that goes with the model's vision tower, if the user gave one.
        question: the instruction in the user's words, if given.
        vocabulary: the model's tokenizer and embedding table, if the user gave a tokenizer.
    """

    embeds: Tensor
    valid: Tensor
    image: Tensor
    tail: int
    last: Tensor
    ids: Tensor | None
    tower: TextTower | None
    question: str | None
    vocabulary: Vocabulary | None = None

    @cached_property
    def columns(self) -> Tensor:
        """[T] where text tokens stand: real, of no image, before the tail. Looked for when a method reads them."""
        real = self.valid.nonzero().squeeze(1)
        real = real[: len(real) - self.tail]
        return real[self.image[real] < 0]

    def embeddings(self, after_image: bool) -> Tensor:
        """[T, D] float32."""
        return self.embeds[self.columns[self.columns > self.last] if after_image else self.columns].float()

    def instructed(self) -> Tensor:
        """[T, D] float32 embeddings of the question where it was given, or else of what stands after the image."""
        if self.question is None:
            return self.embeddings(after_image=True)
        return self._given_vocabulary().embeddings(self.question, self.embeds)

    def aligned(self, features: Tensor, rows: TowerRows, truncate: bool) -> Aligned:
        """Tokens with these projected features [n, D] and tower rows beside the instruction."""
        if self.tower is None:
            return Aligned(features.float(), self.instructed(), clip=False)
        text = self.tower.text(self._instruction(self.tower.read), truncate)
        visual = self.tower.visual(rows.rows).to(features.device)
        return Aligned(visual, text.to(features.device), clip=True, sign=self.tower.sign)

    def gradient(self, collected: Tensor, state: Tensor) -> Tensor | None:
        """[f, W] see `core.needs.PromptReading.clip_gradient`."""
        if self.tower is None:
            return None
        return self.tower.gradient(collected, state, self._instruction(self.tower.read)).to(collected.device)

    def words(self, pick: Callable[[str], Sequence[str]]) -> Tensor | None:
        """[m, D] float32 embeddings of the words that `pick` takes from the instruction; None without a tokenizer."""
        if self.vocabulary is None and self.question is None:
            return None
        vocabulary = self._given_vocabulary()
        return vocabulary.embeddings(pick(self._instruction(vocabulary.read)), self.embeds)

    def _given_vocabulary(self) -> Vocabulary:
        """What reads the question, which would otherwise be left aside in silence."""
        if self.vocabulary is None:
            raise UserError(
                "session.question is given, and the method reads it in the LLM's own words: give prune tokenizer=, the "
                "model's tokenizer or processor."
            )
        return self.vocabulary

    def _instruction(self, read: Callable[[Tensor], str]) -> str:
        """The question if it was given, or else what `read` makes of the token ids after the image."""
        if self.question is not None:
            return self.question
        if self.ids is None:
            raise UserError("The prompt was given as embeddings: set session.question to what it asks.")
        columns = self.columns[self.columns > self.last]
        return read(self.ids.to(columns.device)[columns])


def question_of(questions: str | list[str] | None, sample: int) -> str | None:
    """The question of a sample where the user gave one for all, or one for each."""
    if isinstance(questions, list):
        if sample >= len(questions):
            raise UserError(f"session.question has {len(questions)} questions, and the batch more samples.")
        return questions[sample]
    return questions
