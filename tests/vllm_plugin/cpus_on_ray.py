"""vLLM's platform for CPUs, of which Ray has some to give away: what a platform outside vLLM says in one line.

Ray counts devices and has none of its own, so a cluster may be told of GPUs that no machine has (`num_gpus=2`). vLLM
has Ray place engines by such a count, whose name its own platform for CPUs leaves empty.
"""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform


class CpusOnRay(CpuPlatform):
    ray_device_key = "GPU"


def platform() -> str:
    """What vLLM asks of the entry point `vllm.platform_plugins`."""
    return f"{__name__}.{CpusOnRay.__name__}"
