"""A plugin that prunes visual tokens in vLLM, without a fork. vLLM finds it by the entry point `vllm.general_plugins`.

It adds one architecture, which `hf_overrides` asks for; every other model runs as if the plugin were not there.
"""

from __future__ import annotations

ARCHITECTURE = "VlmpruneForConditionalGeneration"


def register() -> None:
    """Tell vLLM the architecture. vLLM calls this in each of its processes; the model is imported when it is used."""
    from vllm import ModelRegistry

    from vlmprune.serve.vllm.figures import drop_folder_at_exit

    drop_folder_at_exit()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"vlmprune.serve.vllm.model:{ARCHITECTURE}")
