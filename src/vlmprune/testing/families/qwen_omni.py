"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: pictures, and films with a sound track between their frames."""

from __future__ import annotations

from dataclasses import replace

from vlmprune.testing.family import Family
from vlmprune.testing.images import Arguments, Kind
from vlmprune.testing.qwen import TOWER, image, video
from vlmprune.testing.weights import EXPERTS, IMAGE, TEXT, VIDEO, VISION_END, VISION_START, builder, mrope

AUDIO, AUDIO_START, AUDIO_END = 94, 88, 89
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO, "audio_start_token_id": AUDIO_START,
       "audio_end_token_id": AUDIO_END, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END,
       "user_token_id": 5}  # fmt: skip
HEARING = {
    "num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "max_source_positions": 64, "n_window": 8, "output_dim": 32,
}  # fmt: skip


LACKS = {
    "new image": "transformers counts a new image behind a cache like text",
    "hand loop": "without a mask, transformers counts images like text",
}


def _timed(kind: Kind) -> Kind:
    """The seconds of a frame under the name that the Omni models have for them."""

    def one(seed: int) -> tuple[Arguments, list[int]]:
        arguments, ids = kind.image(seed)
        seconds = arguments.pop("second_per_grid_ts")
        return {**arguments, "video_second_per_grid": seconds}, ids

    return replace(kind, image=one)


_films = _timed(video(seconds=True))
_older = Family(
    "qwen2_5_omni_thinker",
    builder(
        "Qwen2_5OmniThinker",
        {**TOWER, "window_size": 16, "fullatt_block_indexes": [1, 3]},
        {**TEXT, **mrope(1, 1, 2)}, audio_config=HEARING, position_id_per_seconds=25, **IDS,
    ),
    image, window=2, since=(5, 24), lacks=LACKS,
)  # fmt: skip
_newer = Family(
    "qwen3_omni_moe_thinker",
    builder(
        "Qwen3OmniMoeThinker",
        {**TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]},
        {**TEXT, **EXPERTS, "head_dim": 8, **mrope(2, 1, 1, mrope_interleaved=True)},
        audio_config={**HEARING, "downsample_hidden_size": 16, "n_window_infer": 16}, **IDS,
    ),
    image, since=(5, 24), lacks=LACKS,
)  # fmt: skip
FAMILIES = {
    "qwen2_5_omni_thinker": _older,
    "qwen2_5_omni_thinker video": replace(_older, kind=_films),
    "qwen3_omni_moe_thinker": _newer,
    "qwen3_omni_moe_thinker video": replace(_newer, kind=_films),
}
