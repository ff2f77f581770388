"""Tiny models of every family and prompts around images whose slots are known, and the checks of a method on them.

Nothing here is imported by `import vlmprune`. It needs torch and transformers, but no network and no files: a model is
built from a configuration in memory when it is asked for, with strong random weights.

A family is declared in one file of `families/`, which is found by being there. A check is one function in a file
`*_checks.py`. Pytest is imported by `parametrize_with_checks` alone.
"""

from vlmprune.testing import model_checks, text_checks, view_checks  # noqa: F401  # they register their checks
from vlmprune.testing.check import CHECKS, Check, Outcome, run_checks
from vlmprune.testing.families import FAMILIES
from vlmprune.testing.family import Family, alone, image_numbers, prompt
from vlmprune.testing.goldens import check_goldens
from vlmprune.testing.pytests import check_method, parametrize_with_checks
from vlmprune.testing.subject import Ground, ground, grounds

__all__ = [
    "CHECKS",
    "FAMILIES",
    "Check",
    "Family",
    "Ground",
    "Outcome",
    "alone",
    "check_goldens",
    "check_method",
    "ground",
    "grounds",
    "image_numbers",
    "parametrize_with_checks",
    "prompt",
    "run_checks",
]
