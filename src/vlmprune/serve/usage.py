"""What a reply says about the visual tokens of its request, in the words of OpenAI's interface and one more."""

from __future__ import annotations

from typing import Any


def usage_of(before: int, kept: int) -> dict[str, int]:
    """The visual tokens of a prompt before pruning, and after it."""
    return {"visual_tokens": before, "kept": kept}


def with_usage(reply: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
    """A reply, or an event of a stream, with the visual tokens beside the usage that it states, if it does."""
    for holder in (reply, reply.get("response")):
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            holder["usage"]["vlmprune"] = usage
    return reply
