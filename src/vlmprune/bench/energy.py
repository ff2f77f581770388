"""Energy of an NVIDIA GPU by its own counter (NVML), where the package nvidia-ml-py and the counter are there."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vlmprune.core.extras import is_there

NVML = "pynvml"  # the module of nvidia-ml-py


def energy_counter(device: torch.device) -> Callable[[], float] | None:
    """A function that reads the joules that a GPU has used since its driver was loaded; None where nobody counts."""
    if device.type != "cuda" or not is_there(NVML):
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # an older GPU, a part of one (MIG), a virtual one, no right to ask
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
