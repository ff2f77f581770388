"""Tiny models of every family and prompts around images whose slots are known, for tests of methods and adapters.

Nothing here is imported by `import vlmprune`. It needs torch and transformers, but no network and no files: a model is
built from a configuration in memory when it is asked for, with strong random weights.

A family is declared in one file of `families/`, which is found by being there.
"""

from vlmprune.testing.families import FAMILIES
from vlmprune.testing.family import Family, alone, image_numbers, prompt

__all__ = ["FAMILIES", "Family", "alone", "image_numbers", "prompt"]
