"""PixelPrune."""

from __future__ import annotations

import pytest
import torch
from harness import RAGGED, built, inputs_of
from harness_views import LLAVA, check_picks, of_tensors, picked
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid, ImageView
from vlmprune.methods.vision.pixelprune import PixelPrune, prediction_errors

ADAPTIVE = PixelPrune(adaptive=True)


def drawn(*lines: str) -> Tensor:
    """Tokens of two pixels each, of which a letter tells the colour: [1, R, C, 2]."""
    return torch.tensor([[[ord(sign) - 97.0, 1.0] for sign in line] for line in lines])[None]


def shown(grid: Tensor, keep: int = 1) -> ImageView:
    frames, rows, cols, _ = grid.shape
    return of_tensors(keep, Grid(rows, cols, frames), LLAVA, pixels=grid.flatten(0, 2))


def kept(*lines: str, method: PixelPrune = ADAPTIVE) -> list[str]:
    """The drawing with a point for each token that is dropped."""
    image = drawn(*lines)
    chosen = {*picked(method, shown(image)).tolist()}
    cols = len(lines[0])
    return ["".join(sign if row * cols + col in chosen else "." for col, sign in enumerate(line))
            for row, line in enumerate(lines)]  # fmt: skip


def one_by_one(grid: Tensor, threshold: float) -> list[int]:
    """The cells of one frame that are kept, by the rule as it is written, cell after cell."""
    _, rows, cols, _ = grid.shape
    stored = {}
    chosen = []

    def alike(a: Tensor, b: Tensor) -> bool:
        return float((a - b).abs().max()) <= threshold

    for row in range(rows):
        for col in range(cols):
            here, left, above = grid[0, row, col], stored.get((row, col - 1)), stored.get((row - 1, col))
            told = left if left is not None else above
            if left is not None and above is not None:
                corner = stored[row - 1, col - 1]
                told = above if alike(corner, left) and not alike(corner, above) else left
            if told is None or not alike(here, told):
                chosen.append(row * cols + col)
                told = here
            stored[row, col] = told
    return chosen


def test_a_plain_picture_is_one_token() -> None:
    assert kept("aaaa", "aaaa", "aaaa") == ["a...", "....", "...."]


def test_only_the_corners_of_a_rectangle_stay() -> None:
    assert kept("aaaaa", "abbba", "abbba", "aaaaa") == ["a....", ".b..a", ".....", ".a..."]


def test_a_vertical_edge_goes_on_downwards_and_a_horizontal_one_to_the_right() -> None:
    assert kept("aab", "aab", "aab") == ["a.b", "...", "..."]
    assert kept("aaa", "bbb", "bbb") == ["a..", "b..", "..."]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_diagonals_are_the_rule_cell_by_cell(threshold: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randint(0, 4, (1, 7, 5, 2), generator=generator).float()
    grid[:, 2:5, 1:4] = 1.0
    chosen = picked(PixelPrune(adaptive=True, threshold=threshold), shown(grid)).tolist()
    assert chosen == one_by_one(grid, threshold)


def test_errors_do_not_add_up_along_a_ramp() -> None:
    """Each token is compared with what was stored, not with a neighbour that is a little off itself."""
    assert kept("abcdefg", method=PixelPrune(adaptive=True, threshold=2.0)) == ["a..d..g"]


def test_frames_and_tiles_are_told_by_themselves() -> None:
    twice = torch.cat([drawn("ab", "ab"), drawn("ab", "ab")])
    assert picked(ADAPTIVE, shown(twice)).tolist() == [0, 1, 4, 5]
    assert prediction_errors(twice, 0.0)[:, 0, 0].isnan().all()


def test_a_budget_keeps_the_least_predictable() -> None:
    image = drawn("aab", "aaz", "aaz")
    assert picked(PixelPrune(), shown(image, 3)).tolist() == [0, 2, 5]
    for keep in range(1, 9):
        check_picks(picked(PixelPrune(), shown(image, keep)), keep, 9)
    assert picked(PixelPrune(), shown(drawn("aaa", "aaa"), 3)).tolist() == [0, 1, 2]  # copies: the first ones


def test_slots_without_a_patch_stay_where_nothing_may_be_lost() -> None:
    image = drawn("aa", "aa").flatten(0, 2)
    newline = torch.full((1, 2), float("nan"))
    view = of_tensors(4, Grid(2, 2), LLAVA, pixels=torch.cat([image, newline]))
    view.cells = torch.tensor([0, 1, 2, 3, -1])
    assert picked(ADAPTIVE, view).tolist() == [0, 4]
    assert ADAPTIVE.sees_every_slot(LLAVA) and not PixelPrune().sees_every_slot(LLAVA)


def test_where_neighbours_are_gone_a_token_counts_as_new() -> None:
    whole, left = shown(drawn("aaa", "aaa")), torch.tensor([1, 3, 5])
    view = whole.part(left, 2, {"pixels": whole["pixels"][left]})
    assert picked(ADAPTIVE, view).tolist() == [0, 1, 2]


def test_a_budget_beside_the_paper_s_count_is_refused() -> None:
    with pytest.raises(UserError, match="takes no budget"):
        vlmprune.recipe("pixelprune(adaptive=True):0.5")
    with pytest.raises(UserError, match="threshold"):
        PixelPrune(threshold=-1.0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_on_a_model_only_copies_go(family: str) -> None:
    """Of pictures of one colour one token stays; of noise all do."""
    model, inputs = built(family), inputs_of(family, RAGGED)
    plain = {**inputs, "pixel_values": torch.ones_like(inputs["pixel_values"])}
    left = []
    for given in (inputs, plain):
        with torch.no_grad(), vlmprune.prune(model, "pixelprune-lossless") as session:
            model(**given)
        left.append(session.last.tokens)
    assert [before == after for before, after in left[0]] == [True, True]
    assert [after for _, after in left[1]] == [len(row) for row in RAGGED]
