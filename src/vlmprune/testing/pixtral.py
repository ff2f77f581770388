"""What the tiny models with Pixtral's tower share: pictures of any size, a line break behind each row of slots."""

from __future__ import annotations

import torch

from vlmprune.testing.images import ODD, Arguments, Kind, blocks, pixels
from vlmprune.testing.weights import IMAGE, IMAGE_END, LINE_BREAK, PATCH
from vlmprune.testing.weights import TOWER as ENCODER

TOWER = {"model_type": "pixtral", **ENCODER, "num_hidden_layers": 4, "image_size": 64, "head_dim": 8}


def pictures(side: int) -> Kind:
    """A slot for each `side` x `side` patches."""

    def shape(seed: int) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, cols = (1, 8) if seed == ODD else ((2, 4), (4, 2), (3, 3))[seed % 3]
        return 2 * rows, 2 * cols

    def image(seed: int) -> tuple[Arguments, list[int]]:
        rows, cols = shape(seed)
        ids = [token for _ in range(rows // side) for token in (*[IMAGE] * (cols // side), LINE_BREAK)]
        size = (PATCH * rows, PATCH * cols)
        arguments = {"pixel_values": pixels(1, 3, *size, seed=seed), "image_sizes": torch.tensor([size])}
        return arguments, [*ids[:-1], IMAGE_END]

    return Kind(image, lambda seed: blocks(*shape(seed), side=side), side=side)
