"""What vLLM makes of one request to its server: the images of its prompts, before and after pruning."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple

from vlmprune.runtime.apart import Count
from vlmprune.serve.comparison import Add
from vlmprune.serve.usage import usage_of

TURN: ContextVar[Turn] = ContextVar("turn")  # of the request that is being answered


class Images(NamedTuple):
    """How many a prompt has, and their tokens before and after pruning."""

    number: int
    before: int
    kept: int


class Turn:
    """One request.

    Attributes:
        request_id: vLLM's, once the engine has a prompt.
        images: of all its prompts.

    Args:
        add: raises counters.
    """

    def __init__(self, add: Add | None = None) -> None:
        self._add = add
        self._seen: list[Any] = []
        self.request_id = ""
        self.images = Images(0, 0, 0)

    @property
    def usage(self) -> dict[str, int]:
        return usage_of(self.images.before, self.images.kept)

    def note(self, request_id: str, places: Any, found: Images) -> None:
        """Take down a prompt that the engine has taken; the beams of one prompt share its places, and count once."""
        self.request_id = self.request_id or request_id
        if any(places is seen for seen in self._seen):
            return
        self._seen.append(places)
        self.images = Images(*(a + b for a, b in zip(self.images, found, strict=True)))
        if self._add is not None:
            names = ("images_total", "visual_tokens_before_total", "visual_tokens_after_total")
            self._add(dict(zip(names, found, strict=True)))


def watch(engine: Any) -> None:
    """Have a server's engine tell the turn of a request which prompts it takes for it.

    Args:
        engine: vLLM's client of its engines, whose renderer has the counting half of the plugin.
    """
    take: Callable[..., Awaitable[Any]] = engine.add_request
    counts: Mapping[str, Count] = engine.renderer.get_mm_processor().counts

    @wraps(take)
    async def taken(request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        turn, places = TURN.get(None), _places(prompt)
        found = images_of(prompt, counts) if turn is not None and places else None
        queue = await take(request_id, prompt, *args, **kwargs)
        if turn is not None and found is not None:
            turn.note(request_id, places, found)
        return queue

    engine.add_request = taken


def images_of(prompt: Mapping[str, Any], counts: Mapping[str, Count]) -> Images:
    """Those of a prompt as vLLM's renderer hands it to an engine.

    Args:
        counts: tokens before and after pruning, by vLLM's key of an image under a budget.
    """
    keys = [key for own in prompt["mm_hashes"].values() for key in own]
    if unknown := [key for key in keys if key not in counts]:
        raise RuntimeError(f"vLLM has a prompt with {len(unknown)} images that vlmprune's processor did not count")
    return Images(len(keys), sum(counts[key].whole for key in keys), sum(counts[key].kept for key in keys))


def _places(prompt: Any) -> Any:
    return prompt.get("mm_placeholders") if isinstance(prompt, Mapping) else None
