"""Serving: a server with OpenAI's interface whose model runs under `vlmprune.prune`, and a plugin for vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmprune.serve.vllm.asked import overrides

__all__ = ["overrides"]


def __getattr__(name: str) -> Any:
    if name == "overrides":  # vLLM imports this package in every process, also where it prunes nothing
        from vlmprune.serve.vllm.asked import overrides

        return overrides
    raise AttributeError(f"module 'vlmprune.serve' has no attribute {name!r}")
