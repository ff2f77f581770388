"""Which methods the tests on models run, and by what they differ."""

from __future__ import annotations

import vlmprune
from vlmprune.core.method import PixelMethod
from vlmprune.testing import FAMILIES

MERGING = {"pool", "prumerge", "prumerge+", "recoverable", "tome", "trim", "visionzip"}
EDITING = {"hilo", "fuse"}  # attention before the cut: the oracle of that is in test_fusion.py, elsewhere they only cut
RECYCLING = {"sparsevlm", "autoprune"}  # inside the LLM; each has a step-by-step reference in its own tests
TRIMMING = {"mustdrop"}  # decoding sees less than an uncached forward would: only its first token can be compared
METHODS = [name for name in vlmprune.METHODS if not issubclass(vlmprune.METHODS[name], PixelMethod)]
# AutoPrune reads every decoder layer's attention, and recurrent ones have none.
REFUSED = [("autoprune", key) for key, family in FAMILIES.items() if family.recurrent]
