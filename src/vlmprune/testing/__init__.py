"""Tiny models of every family and prompts around images whose slots are known; the checks of methods and adapters.

Nothing here is imported by `import vlmprune`. It needs torch and transformers, but no network and no files: a model is
built from a configuration in memory when it is asked for, with strong random weights.

A family is declared in one file of `families/`, which is found by being there. A check is one function in a file
`*_checks.py`. Pytest is imported by `parametrize_with_checks` alone.
"""

# they register their checks, in this order
from vlmprune.testing import text_checks, view_checks, model_checks  # noqa: F401, I001
from vlmprune.testing import adapter_checks, module_checks, image_checks, signal_checks, probe_checks  # noqa: F401
from vlmprune.testing.adapter_run import check_adapter, run_adapter_checks, run_model_checks
from vlmprune.testing.check import ADAPTER_CHECKS, CHECKS, Check, Outcome, run_checks
from vlmprune.testing.families import FAMILIES
from vlmprune.testing.family import Family, alone, image_numbers, prompt
from vlmprune.testing.goldens import check_goldens
from vlmprune.testing.pytests import check_method, parametrize_with_checks
from vlmprune.testing.subject import Ground, ground, grounds

__all__ = [
    "ADAPTER_CHECKS",
    "CHECKS",
    "FAMILIES",
    "Check",
    "Family",
    "Ground",
    "Outcome",
    "alone",
    "check_adapter",
    "check_goldens",
    "check_method",
    "ground",
    "grounds",
    "image_numbers",
    "parametrize_with_checks",
    "prompt",
    "run_adapter_checks",
    "run_checks",
    "run_model_checks",
]
