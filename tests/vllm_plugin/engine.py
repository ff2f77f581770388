"""One vLLM engine in a process of its own: reads what to run from stdin, and writes the tokens of each reply to a file.

It finds the plugin as vLLM does, by the entry point that pyproject.toml declares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def pictures(names: list[str]) -> list[Any]:
    from PIL import Image

    return [Image.open(name).convert("RGB") for name in names]


def about(frames: int, fps: float) -> dict[str, Any]:
    """What a reader of videos says of one of which all frames were taken."""
    indices = list(range(frames))
    return {"fps": fps, "duration": frames / fps, "total_num_frames": frames, "frames_indices": indices}


def media(names: list[str], videos: list[list[str]], fps: float | None) -> dict[str, Any]:
    import numpy as np

    films: list[Any] = [np.stack([np.asarray(frame) for frame in pictures(frames)]) for frames in videos]
    if fps:
        films = [(film, {**about(len(film), fps), "do_sample_frames": False}) for film in films]
    return ({"image": pictures(names)} if names else {}) | ({"video": films} if films else {})


def main() -> None:
    from vllm import LLM, SamplingParams

    from vlmprune.serve import overrides

    asked = json.load(sys.stdin)
    prune = {name: asked[name] for name in ("positions", "request_keep", "text_tower")}
    model = LLM(
        model=asked["model"],
        hf_overrides=overrides(*asked["prune"], **prune) if asked["prune"] else None,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        block_size=32,
        limit_mm_per_prompt={"image": 2},
        max_num_seqs=4,
        **asked.get("engine", {}),
    )
    length = {"max_tokens": asked["max_tokens"], "min_tokens": asked["max_tokens"]}
    sampling = SamplingParams(temperature=0, repetition_penalty=asked["penalty"], **length)
    said = []
    for prompts in asked["rounds"]:
        given = [
            {"prompt": text, "multi_modal_data": media(names, videos, asked["fps"]), "mm_processor_kwargs": options}
            for text, names, videos, options in prompts
        ]
        replies = model.generate(given, sampling, use_tqdm=False)
        said.append(
            [
                {
                    "tokens": [*reply.outputs[0].token_ids],
                    "prompt": len(reply.prompt_token_ids),
                    "cached": reply.num_cached_tokens,
                }
                for reply in replies
            ]
        )
    Path(asked["out"]).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
