"""What of vLLM the plugin was tested with; anything else is refused, and not tried on a user's requests."""

from __future__ import annotations

from typing import Any

from vlmprune.core.errors import UserError
from vlmprune.serve.wanted import KEEP, LATEST, QUERY

VERSIONS = "0.32."  # the plugin stands on parts of vLLM that are not public


def check_engine(config: Any, version: str) -> None:
    """Raise UserError where an engine is set up in a way in which the plugin was not tested.

    Args:
        config: vLLM's, as its models get it.
        version: of vLLM.
    """
    if not version.startswith(VERSIONS):
        raise UserError(
            f"vlmprune's plugin is tested with vLLM {VERSIONS}x, and this is {version}: install "
            "'vlmprune[vllm]', which holds vLLM to that."
        )
    parallel, media = config.parallel_config, config.model_config.multimodal_config
    if KEEP in (media.mm_processor_kwargs or {}):
        raise UserError(f"{KEEP} is for requests alone: an engine's own budget is in the overrides that start it.")
    for name in (QUERY, LATEST):
        if name in (media.mm_processor_kwargs or {}):
            raise UserError(f"{name} is for requests alone: each has one of its own.")
    untested = {
        "--pipeline-parallel-size": parallel.pipeline_parallel_size > 1,
        "--enable-lora": config.lora_config is not None,  # it counts an image's tokens by itself
        "--speculative-config": config.speculative_config is not None,
        "compile_mm_encoder": bool(config.compilation_config.compile_mm_encoder),  # nothing could be read inside it
        "--video-pruning-rate": bool(media.video_pruning_rate),
    }
    for name, used in untested.items():
        if used:
            raise UserError(
                f"vlmprune's plugin is not tested with {name}: leave it out, or serve several engines side by side "
                "(--data-parallel-size)."
            )
