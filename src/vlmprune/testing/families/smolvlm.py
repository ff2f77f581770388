"""SmolVLM: tiles of 2 x 2 shuffled patches with markers between them, the whole image last."""

import torch

from vlmprune.testing.family import ONE_SIZE, Family
from vlmprune.testing.images import Arguments, Kind, pixels, shuffled
from vlmprune.testing.weights import AROUND_IMAGE, IMAGE, LINE_BREAK, LLAMA, TILES, TOWER, WHOLE_IMAGE, builder


def _grid(seed: int) -> tuple[int, int]:
    """Rows and columns of tiles besides the whole image; none where the image is not split."""
    return ((1, 2), (2, 2), (0, 0))[seed % 3]


def _image(seed: int) -> tuple[Arguments, list[int]]:
    rows, cols = _grid(seed)
    tiles = rows * cols + 1
    values, mask = pixels(1, tiles, 3, 24, 24, seed=seed), torch.ones(1, tiles, 24, 24, dtype=torch.long)
    if tiles == 1:  # not square: two patches of padding at the right, or at the bottom
        (mask[..., 16:] if seed % 2 == 0 else mask[..., 16:, :]).zero_()
        values *= mask[:, :, None]
    slots = [IMAGE] * 9
    ids: list[int] = []
    for row in range(rows):
        for col in range(cols):
            ids += [AROUND_IMAGE, TILES[2 * row + col], *slots]
        ids += [LINE_BREAK]
    ids += [LINE_BREAK] * (rows > 0) + [AROUND_IMAGE, WHOLE_IMAGE, *slots, AROUND_IMAGE]
    return {"pixel_values": values, "pixel_attention_mask": mask}, ids


# 9 slots a tile, a line break after each row of tiles
marked_tiles = Kind(_image, lambda seed: shuffled(_grid(seed)[0] * _grid(seed)[1] + 1), side=2)
FAMILIES = {
    "smolvlm": Family(
        "smolvlm", builder("SmolVLM", {**TOWER, "image_size": 24}, LLAMA, image_token_id=IMAGE), marked_tiles,
        by_sample=True, lacks={"downsample": ONE_SIZE},
    )
}  # fmt: skip
