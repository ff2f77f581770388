"""MMTok, and the words that it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import built, inputs_of
from harness_views import INTERN, KINDS, LLAVA, NEXT, QWEN, check_picks, image, picked, values
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.needs import Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import PromptText, QuestionWords
from vlmprune.core.view import Grid, ImageView, ModelInfo, TowerRows
from vlmprune.methods.question import EMPTY, FUNCTION_WORDS, content_words, keywords, with_heading
from vlmprune.methods.vision.mmtok import MMTok, padding


def plain_loop(view: ImageView, keep: int, text: float, image_: float, alpha: float) -> list[int]:
    """The definition in float64, row by row of M."""
    x, v, z = (normalize(rows.double(), dim=1) for rows in (view["features"], view["states"].rows, view["words"]))
    matrix = torch.cat([(z @ x.T / text).softmax(1) / len(z), alpha * (v @ v.T / image_).softmax(1) / len(v)])
    best, picks = torch.zeros(len(matrix)), list[int]()
    for _ in range(keep):
        gain = (matrix - best[:, None]).clamp(min=0).sum(0)
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, matrix[:, picks[-1]])
    return picks


class TestMMTok:
    @pytest.mark.parametrize(("info", "text"), [(LLAVA, 0.02), (QWEN, 0.01), (INTERN, 0.01)])
    @pytest.mark.parametrize(("n", "keep"), [(2, 1), (100, 37)])
    def test_it_is_the_definition(self, info: ModelInfo, text: float, n: int, keep: int) -> None:
        view = image(MMTok(), n, keep, info=info, seed=n)
        expected = plain_loop(view, keep, text, 0.2, 0.5)
        assert MMTok().picks(view).tolist() == expected
        assert picked(MMTok(), view).tolist() == sorted(expected)
        options = {"text_temperature": 0.1, "image_temperature": 0.05, "alpha": 2.0}
        assert MMTok(**options).picks(view).tolist() == plain_loop(view, keep, 0.1, 0.05, 2.0)

    def test_with_alpha_0_the_words_are_covered_one_by_one_and_then_the_first_tokens_follow(self) -> None:
        view = image(MMTok(), 8, 4, info=QWEN)
        view.signals = {
            "features": torch.eye(8),
            "states": TowerRows(torch.eye(8), None),
            "words": torch.eye(8)[[6, 3]],
        }
        assert MMTok(alpha=0.0).picks(view).tolist()[:2] == [3, 6]

    def test_without_text_the_image_alone_is_covered(self) -> None:
        view = image(MMTok(), 60, 9, texts=0)
        assert len(view["words"]) == 0
        spoken = image(MMTok(), 60, 9)
        spoken.signals = {**view.signals, "words": torch.zeros(1, 12)}  # as near to each token as to any other
        assert torch.equal(picked(MMTok(), view), picked(MMTok(), spoken))

    @pytest.mark.parametrize(("n", "width"), [(34, 32), (51, 16), (67, 100), (130, 40)])
    @pytest.mark.parametrize("info", [LLAVA, QWEN])
    def test_equal_tokens_go_by_index_however_a_product_rounds(self, n: int, width: int, info: ModelInfo) -> None:
        alike = values("noise", 1, width).repeat(n, 1)
        for keep in (1, 10, n - 1):
            view = image(MMTok(), n, keep, info=info)
            words = values("noise", 5, width, seed=1)
            view.signals = {"features": alike, "states": TowerRows(alike, None), "words": words}
            assert MMTok().picks(view).tolist() == list(range(keep))

    @pytest.mark.parametrize("kind", KINDS)
    def test_whatever_the_numbers_the_budget_is_exact(self, kind: str) -> None:
        for keep in (1, 30, 59):
            check_picks(picked(MMTok(), image(MMTok(), 60, keep, kind)), keep, 60)

    def test_tiles_of_llava_are_covered_one_by_one_and_elsewhere_the_whole_image(self) -> None:
        assert [MMTok().pool(info) for info in (LLAVA, NEXT, QWEN, INTERN)] == ["frame", "frame", "image", "image"]


class TestPadding:
    def test_it_is_taken_last(self) -> None:
        grid, asked = Grid(12, 12), MMTok(padded="300x200")
        for keep in (1, 96, 97, 143):
            kept = picked(asked, image(asked, 144, keep, grid=grid))
            check_picks(kept, keep, 144)
            inside = ((kept >= 24) & (kept < 120)).sum()
            assert int(inside) == min(keep, 96)

    def test_of_tokens_that_are_gone_nothing_is_asked(self) -> None:
        slots = torch.arange(0, 144, 2)
        asked = MMTok(padded="200x300")
        view = image(asked, 72, 9, grid=Grid(12, 12), slots=slots)
        assert asked.padding(view).tolist() == [cell % 12 < 2 or cell % 12 >= 10 for cell in slots.tolist()]

    @pytest.mark.parametrize(
        ("size", "overlap", "first", "last"),
        [((640, 640), False, 0, 0), ((640, 480), False, 3, 3), ((640, 480), True, 3, 3), ((640, 420), False, 4, 4),
         ((640, 420), True, 5, 5), ((1000, 1), False, 12, 12)],
    )  # fmt: skip
    def test_lines_of_patches(self, size: tuple[int, int], overlap: bool, first: int, last: int) -> None:
        wide = padding(*size, 336, overlap).view(24, 24)
        assert wide.all(1).tolist() == [line < first or line >= 24 - last for line in range(24)]
        assert torch.equal(wide.any(1), wide.all(1))
        assert torch.equal(padding(*size[::-1], 336, overlap).view(24, 24), wide.T)

    def test_it_needs_one_square(self) -> None:
        for grid in (None, Grid(4, 6), Grid(4, 4, 2)):
            asked = MMTok(padded="300x200")
            with pytest.raises(UserError, match="one square"):
                asked.select(image(asked, 24, 5, grid=grid))

    @pytest.mark.parametrize("padded", ["300", "0x200", "300x200x1", "300 x 200", 300, "ax7"])
    def test_what_is_no_size_is_refused(self, padded: Any) -> None:
        with pytest.raises(UserError, match="width and a height"):
            MMTok(padded=padded)


class TestKeywords:
    def test_there_are_47_function_words(self) -> None:
        assert len(FUNCTION_WORDS) == 47

    def test_a_question_of_function_words_stays_as_it_was(self) -> None:
        assert keywords("Where are they?") == "Where are they?"
        assert content_words("Where are they?") == ["Where", "are", "they?"]

    def test_an_empty_question_asks_what_there_is_to_see(self) -> None:
        assert content_words(" \n") == keywords(EMPTY).split() == ["see", "in", "this", "image"]

    def test_elsewhere_all_words_count(self) -> None:
        assert with_heading("Is it a dog?") == ["Question:", "Is", "it", "a", "dog?"]

    def test_which_words_are_read_goes_by_the_family_or_as_asked(self) -> None:
        def pick(asked: MMTok, info: ModelInfo) -> Any:
            return asked.needs(info)["words"]

        assert pick(MMTok(), LLAVA) == pick(MMTok(keywords=True), QWEN) == QuestionWords(content_words)
        assert pick(MMTok(), QWEN) == pick(MMTok(keywords=False), LLAVA) == QuestionWords(with_heading)


# ------------------------------------------------------------------ through the runtime


class Recorded(Method):
    """Remembers the words of the question and the prompt's text."""

    name, stage = "recorded", "vision"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[ImageView] = []

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"words": QuestionWords(content_words), "text": PromptText(after_image=True)}

    def select(self, view: ImageView) -> Tensor:
        self.seen.append(view)
        return torch.arange(view.keep)


def word_tokenizer(count: int) -> PreTrainedTokenizerFast:
    """Tokens w0, w1, ..., and "dog" and "red" as the third and fourth."""
    words = {f"w{number}": number for number in range(count) if number not in (3, 4)} | {"dog": 3, "red": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def read(question: str | list[str] | None, tokenizer: Any, samples: Any = ((0,),)) -> tuple[list[ImageView], Any]:
    asked, model = Recorded(), built("llava")
    with torch.no_grad(), vlmprune.prune(model, Recipe((Stage(asked, 1),)), tokenizer=tokenizer) as session:
        session.question = question
        model(**inputs_of("llava", samples))
    return asked.seen, session


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(int(built("llava").get_input_embeddings().weight.shape[0]))


def test_words_of_the_question_are_rows_of_the_embedding_table(tokenizer: PreTrainedTokenizerFast) -> None:
    table = built("llava").get_input_embeddings().weight
    [view], session = read("Is the dog red?", tokenizer)
    assert torch.equal(view["words"][:1], table[[3]].float()) and session.last.text == "words of the question"
    first, second = read(["dog", "red dog"], tokenizer, ((0,), (1,)))[0]
    assert torch.equal(first["words"], table[[3]]) and torch.equal(second["words"], table[[4, 3]])


def test_without_a_question_the_prompt_is_read_behind_the_image(tokenizer: PreTrainedTokenizerFast) -> None:
    [view], _ = read(None, tokenizer)
    assert torch.equal(view["words"], view["text"])  # each token is a word here


def test_without_a_tokenizer_the_instructions_tokens_are_read() -> None:
    [view], session = read(None, None)
    assert torch.equal(view["words"], view["text"]) and len(view["text"])
    with pytest.raises(UserError, match="give prune tokenizer="):
        read("dog", None)
    assert session.last.text == session.text == "instruction embeddings"


def test_a_tokenizer_of_another_model_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    longer = word_tokenizer(len(tokenizer) + 5)
    with pytest.raises(UserError, match="not the model's"):
        read(f"w{len(tokenizer) + 4}", longer)
    with pytest.raises(UserError, match="tokenizer or processor"):
        vlmprune.prune(built("llava"), "mmtok:5", tokenizer="llava-hf/llava-1.5-7b-hf")


def test_a_chain_says_all_that_the_image_was_compared_with(tokenizer: PreTrainedTokenizerFast) -> None:
    session = vlmprune.prune(built("llava"), "mmtok:0.5 > trim:5", tokenizer=tokenizer)
    assert session.text == "instruction embeddings, words of the question"
    assert vlmprune.prune(built("llava"), "divprune:5", tokenizer=tokenizer).text is None
