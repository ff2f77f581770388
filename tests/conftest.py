"""One thread a process: tests run side by side, and sums in one order are the same on every machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start

import torch

torch.set_num_threads(1)
