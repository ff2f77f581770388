"""Mistral 3: pictures of any size in one batch, 2 x 2 patches a slot, a line break behind each row of slots."""

from dataclasses import replace

import torch

from vlmprune.testing.family import Family
from vlmprune.testing.images import ODD, Arguments, Kind, blocks, pixels
from vlmprune.testing.weights import IMAGE, IMAGE_END, LINE_BREAK, PATCH, TEXT, TOWER, builder

PIXTRAL = {"model_type": "pixtral", **TOWER, "num_hidden_layers": 4, "image_size": 64, "head_dim": 8}


def _shape(seed: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    return (2, 16) if seed == ODD else ((4, 8), (8, 4), (6, 6))[seed % 3]


def _image(seed: int) -> tuple[Arguments, list[int]]:
    rows, cols = _shape(seed)
    ids = [token for _ in range(rows // 2) for token in (*[IMAGE] * (cols // 2), LINE_BREAK)]
    size = (PATCH * rows, PATCH * cols)
    return {"pixel_values": pixels(1, 3, *size, seed=seed), "image_sizes": torch.tensor([size])}, [*ids[:-1], IMAGE_END]


_first = Family(
    "mistral3",
    builder(
        "Mistral3", PIXTRAL, {"model_type": "mistral", **TEXT, "head_dim": 8, "sliding_window": None},
        image_token_index=IMAGE,
    ),
    Kind(_image, lambda seed: blocks(*_shape(seed), side=2), side=2),
)  # fmt: skip
# attention that scales its queries by their position ids, here from the eighth on
MINISTRAL = {
    "model_type": "ministral3", **TEXT, "head_dim": 8, "sliding_window": None,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8,
    },
}  # fmt: skip
FAMILIES = {
    "mistral3": _first,
    "mistral3 with Ministral": replace(_first, build=builder("Mistral3", PIXTRAL, MINISTRAL, image_token_index=IMAGE)),
}
