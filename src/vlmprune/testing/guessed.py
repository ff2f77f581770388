"""Inputs of a tiny model whose processor nobody has: one picture in one of the forms in which families take pictures.

The encoder itself says which form is right: it runs. How many placeholders stand in the prompt is how many features it
makes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.models.base import Adapter
from vlmprune.testing.images import pixels, text
from vlmprune.testing.shrunk import SIDE
from vlmprune.testing.weights import PATCH, VISION_END, VISION_START

ROWS, COLS = 4, 8  # patches of a picture of any shape
TYPES = ("mm_token_type_ids", "token_type_ids")
Arguments = dict[str, Tensor]


@torch.no_grad()
def inputs_for(adapter: Adapter) -> Arguments:
    """A prompt with one picture: text, as many placeholders as the picture has features, text.

    Raises:
        LookupError: the encoder ran with no form of picture; the last error is in the sentence.
        UserError: it ran, and the adapter refuses what it returned.
    """
    taken = inspect.signature(adapter.inner.get_image_features).parameters
    error: Exception | None = None
    for picture in _pictures(set(taken)):
        try:
            output = adapter.inner.get_image_features(**picture, **({"return_dict": True} if "kwargs" in taken else {}))
            count = sum(map(len, adapter.features("image", picture, getattr(output, adapter.features_in, None))))
        except UserError:
            raise
        except Exception as failed:  # whatever its code raises on pixels of another form
            error = failed
            continue
        return {**_prompt(adapter, count), **picture}
    raise LookupError(f"its encoder took none of the forms of pictures tried ({_sentence(error)})")


def _prompt(adapter: Adapter, count: int) -> Arguments:
    before, after = [1, *text(5, 0), VISION_START], [VISION_END, *text(6, 1)]
    slots = [adapter.placeholder_ids["image"]] * count
    ids = torch.tensor([[*before, *slots, *after]])
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    known = inspect.signature(adapter.inner.forward).parameters
    return found | {name: (ids == slots[0]).int() for name in TYPES if name in known}


def _pictures(names: set[str]) -> Iterator[Arguments]:
    """Arguments of the encoder in forms that go with their names, the likeliest first."""
    rows, patch = ROWS * COLS, 3 * PATCH**2
    grid = torch.tensor([[1, ROWS, COLS]])
    places = torch.cartesian_prod(torch.arange(ROWS), torch.arange(COLS)).flip(1)[None]
    square = pixels(1, 3, SIDE, SIDE, seed=0)
    extra: dict[str, Tensor] = {
        "image_sizes": torch.tensor([[SIDE, SIDE]]), "image_merge_sizes": torch.tensor([2]),
        "spatial_shapes": torch.tensor([[ROWS, COLS]]), "image_position_ids": places,
        "image_grid_thw": grid, "image_grid_hws": grid[:, 1:], "grid_thws": grid, "grid_hws": grid[:, 1:],
        "target_sizes": grid[:, 1:], "num_crops": torch.tensor([1]),
    }  # fmt: skip
    given = {name: value for name, value in extra.items() if name in names}
    forms = [
        *(pixels(rows, width, seed=0) for width in (2 * patch, patch)),
        *(pixels(1, rows, width, seed=0) for width in (patch, 2 * patch)),
        pixels(rows, 3, PATCH, PATCH, seed=0), pixels(1, 3, PATCH, PATCH * rows, seed=0),
        pixels(1, 3, ROWS * PATCH, COLS * PATCH, seed=0),
    ]  # fmt: skip
    whole = [square, square[None], square.repeat(2, 1, 1, 1)[None]]
    flat = bool(names & {"image_grid_thw", "spatial_shapes", "image_position_ids", "target_sizes", "grid_thws"})
    for form in [*forms, *whole] if flat else [*whole, *forms]:
        yield {"pixel_values": form, **given, **_masked(form, names)}


def _masked(form: Tensor, names: set[str]) -> Arguments:
    """Every pixel, or patch, is real."""
    found = {}
    if "pixel_attention_mask" in names:
        shape = form.shape[:2] if form.ndim == 3 else (*form.shape[:-3], *form.shape[-2:])
        found["pixel_attention_mask"] = torch.ones(shape, dtype=torch.long)
    return found


def _sentence(error: Exception | None) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:120]
