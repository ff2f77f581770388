"""MMTok: the tokens that together cover the words of the question and the image itself."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vlmprune.author import (
    EncoderStates, Features, ImageView, Method, ModelInfo, Need, NotNegative, Positive, QuestionWords, UserError,
    ascending,
)  # fmt: skip
from vlmprune.methods.coverage import most_covering
from vlmprune.methods.diversity import first_alike, unit_rows
from vlmprune.methods.question import content_words, with_heading

PATCH = 14  # pixels along the edge of a patch of LLaVA-1.5


@dataclass
class MMTok(Method):
    """Coverage of question and image at once: each pick adds most to how well the words and all tokens are covered.

    Paper: MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs (ICLR 2026, arXiv 2508.18264).

    Formula: X [n, D] projected features, V [n, C] output of the encoder layer that is projected, Z [m, D] embeddings of
    the question's words, all with rows of length 1. P = softmax(Z X^T / text_temperature) / m [m, n], Q = softmax(V V^T
    / image_temperature) / n [n, n], each row over the n tokens; M = [P; alpha Q]. c [m + n] = 0: how well each row is
    covered. Until `keep` are picked: argmax over j of sum over rows r of max(0, M_rj - c_r), then c = max(c, M_j) for
    the pick j. Ties go to the lower index. Time O(n^2 C + n m D) and at most O((m + n) n keep), memory O((m + n) n).

    Defaults: alpha 0.5, image_temperature 0.2. LLaVA: text_temperature 0.02, words without articles, forms of "be",
    question words and the like; each tile or frame covers the whole question by itself; positions renumbered. 64 tokens
    on LLaVA-1.5, 32 per tile on LLaVA-NeXT. Elsewhere, as in the authors' code for Qwen2.5-VL: text_temperature 0.01,
    all words after "Question:", a fifth of the tokens, and all tokens of an image or video compete.

    Args:
        alpha: weight of the image's coverage against that of the words; with 0, ties decide once all words are covered.
        text_temperature: of P; by default 0.02 on LLaVA and 0.01 elsewhere.
        image_temperature: of Q.
        keywords: whether only content words count; by default on LLaVA.
        padded: "WIDTHxHEIGHT" of the picture before it was padded to a square, as LLaVA-1.5's authors do. Tokens that
            show only padding are then picked last. Transformers' processors crop the picture instead.
        overlap: with `padded`, do so with tokens that show any padding.

    Differences from the authors' code:
        - The words are those of `session.question`, or else of the prompt after the image, whose template may add some
          ("ASSISTANT"). They are embedded by the tokenizer given to `prune`, as in `vlmprune run` and `bench`; without
          one, Z are the embeddings of all tokens after the image.
        - Padding is taken where other tokens do not fill the budget; theirs then repeats the first token.
        - On Qwen each image has a budget and is covered by itself; theirs takes the prompt's images as one pool, which
          must be side by side. Theirs has no code for videos and for other families.
        - On LLaVA-NeXT tiles cut by padding get budgets in proportion to what is left of them. Theirs keeps the
          padding.
    """

    name: ClassVar[str] = "mmtok"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens that together cover the words of the question and the image"

    alpha: Annotated[float, NotNegative] = 0.5
    text_temperature: Annotated[float, Positive] | None = None
    image_temperature: Annotated[float, Positive] = 0.2
    keywords: bool | None = None
    padded: str | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padded is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(self.padded)):
            raise UserError(f'mmtok: padded={self.padded!r} must be a width and a height in pixels, such as "640x480".')

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        only = info.llava if self.keywords is None else self.keywords
        words = QuestionWords(content_words if only else with_heading)
        return {"features": Features(), "states": EncoderStates(), "words": words}

    def pool(self, info: ModelInfo) -> str:
        return "frame" if info.llava else "image"

    def select(self, view: ImageView) -> Tensor:
        return ascending(self.picks(view))

    def picks(self, view: ImageView) -> Tensor:
        """Token indices in the order in which they are picked, [keep]."""
        tokens, states, words = (
            unit_rows(rows.double()).float() for rows in (view["features"], view["states"].rows, view["words"])
        )
        text = self.text_temperature or (0.02 if view.info.llava else 0.01)
        of_words = (tokens @ words.T / text).softmax(0) / max(1, len(words))
        of_image = (states @ states.T / self.image_temperature).softmax(0) * (self.alpha / view.n)
        # below any gain by more than all that can be gained
        behind = -2.0 * (1 + self.alpha) * self.padding(view).float()
        covers = torch.cat([of_words, of_image], 1)[first_alike(torch.cat([tokens, states], 1))]
        return most_covering(covers, view.keep, lambda gain, at: gain + behind[at])

    def padding(self, view: ImageView) -> Tensor:
        """[n] whether a token shows padding.

        Raises:
            UserError: `padded` is given, and the image is not one square.
        """
        if self.padded is None:
            return torch.zeros(view.n, dtype=torch.bool, device=view.slots.device)
        if view.grid is None or view.grid.frames > 1 or view.grid.rows != view.grid.cols:
            raise UserError("mmtok: padded is for models that see a picture as one square, as LLaVA-1.5: leave it out.")
        width, height = map(int, self.padded.split("x"))
        return padding(width, height, view.grid.rows * PATCH, self.overlap).to(view.cells.device)[view.cells]


def padding(width: int, height: int, edge: int, overlap: bool = False) -> Tensor:
    """Which patches of a square show padding only (with `overlap`: any), [side * side] in raster order.

    Args:
        width, height: of the picture in the middle of the square, in any unit.
        edge: of the square as the encoder gets it, in pixels; side = edge // 14.
    """
    side, shown = edge // PATCH, round(min(width, height) * edge / max(width, height))
    before = (edge - shown) // 2
    after = edge - shown - before
    whole = math.ceil if overlap else math.floor
    line = torch.arange(side)
    lines = (line < whole(before / PATCH)) | (line >= side - whole(after / PATCH))
    return (lines[:, None] if width >= height else lines).expand(side, side).flatten()
