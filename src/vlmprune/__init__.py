"""Run vision-language models on a fraction of their visual tokens, without training.

Whatever `transformers` does with the model inside the block is pruned:

    with vlmprune.prune(model, "hiprune", keep=0.222) as session:
        output = model.generate(**inputs)
    session.last.kept  # which visual tokens stayed
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded at first use, so that `import vlmprune` costs next to nothing.
_LAZY = {
    "METHODS": "vlmprune.core.registry",
    "recipe": "vlmprune.core.recipe",
    "prune": "vlmprune.runtime.session",
    "encode_images": "vlmprune.runtime.session",
    "load_embedded": "vlmprune.assets",
    "overlay": "vlmprune.drawing.overlay",
    "SharedPrefill": "vlmprune.runtime.prefill",
    "TextTower": "vlmprune.runtime.text_tower",
    "UserError": "vlmprune.core.errors",
}

if TYPE_CHECKING:
    from vlmprune.assets import load_embedded
    from vlmprune.core.errors import UserError
    from vlmprune.core.recipe import recipe
    from vlmprune.core.registry import METHODS
    from vlmprune.drawing.overlay import overlay
    from vlmprune.runtime.prefill import SharedPrefill
    from vlmprune.runtime.session import encode_images, prune
    from vlmprune.runtime.text_tower import TextTower

__all__ = [
    "METHODS",
    "SharedPrefill",
    "TextTower",
    "UserError",
    "__version__",
    "encode_images",
    "load_embedded",
    "overlay",
    "prune",
    "recipe",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlmprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
