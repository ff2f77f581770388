"""Ovis 2: the whole image, then rows of tiles of 2 x 2 patches a slot; markers, which the encoder embeds, between."""

from vlmprune.testing.family import ONE_SIZE, Family
from vlmprune.testing.images import tiled
from vlmprune.testing.weights import IMAGE, QWEN2, TOWER, VOCABULARY, builder

OWN_MARKERS = "the encoder embeds the markers around tiles, which the text model alone does not know"
START, GRID, COLUMN, ROW, END = range(84, 89)


def _ids(tiles: int) -> list[int]:
    """Tiles stand in rows of two."""
    slots = [IMAGE] * 9
    ids = [START, *slots, GRID]
    for tile in range(tiles - 1):
        ids += [*slots, ROW if tile % 2 else COLUMN]
    return [*(ids if tiles == 1 else ids[:-1]), END]


FAMILIES = {
    "ovis2": Family(
        "ovis2",
        builder(
            "Ovis2",
            {**TOWER, "image_size": 24, "vocab_size": 40, "num_visual_indicator_tokens": 5, "hidden_stride": 2}, QWEN2,
            image_token_id=IMAGE, visual_indicator_token_ids=[START, GRID, COLUMN, ROW, END], hidden_size=32,
            vocab_size=VOCABULARY,
        ),
        tiled(_ids), lacks={"downsample": ONE_SIZE, "by hand": OWN_MARKERS},
    )
}  # fmt: skip
