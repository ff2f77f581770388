"""The canary of a server with vLLM: a share of its chat completions is asked again, of the unpruned model.

The budget of a request is part of the key under which vLLM caches its images, so a request that keeps all tokens runs
beside the others. It is put to the server behind the middleware, once the client has its reply.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

from vlmprune.serve.comparison import Add, compare, failed
from vlmprune.serve.vllm.asked import PROCESSOR
from vlmprune.serve.vllm.turn import TURN, Turn
from vlmprune.serve.wanted import KEEP

WAITING = 16  # comparisons, of which one runs at a time; more are left out
OWN = ("stream_options", "use_beam_search", "request_id")  # of the one request


class Canary:
    """Compares the replies of a server's own requests.

    Args:
        app: vLLM's server.
        share: of the requests with images.
        add: raises counters.
    """

    def __init__(self, app: Any, share: float, add: Add) -> None:
        self._app, self._share, self._add = app, share, add
        self._seen = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._one = asyncio.Lock()

    def due(self) -> bool:
        """Whether it is the turn of one more request: of 50 at a share of 0.02 that of the last."""
        self._seen += 1
        return math.floor(self._seen * self._share) > math.floor((self._seen - 1) * self._share)

    def begin(self, request_id: str, scope: Mapping[str, Any], body: bytes, reply: Mapping[str, Any] | None) -> None:
        """Compare in a task of its own, which never raises.

        Args:
            scope, body: of the request, as the server got them.
            reply: to the request, if it was not a stream.
        """
        if len(self._tasks) >= WAITING:
            self._add({"canary_skipped_total": 1})
            return
        task = asyncio.create_task(self._run(request_id, scope, body, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self, request_id: str, scope: Mapping[str, Any], body: bytes, reply: Mapping[str, Any] | None
    ) -> None:
        async with self._one:
            try:
                asked = json.loads(body)
                again = greedy(asked)
                if reply is None or not is_greedy(asked):
                    reply = await self._asked(scope, again)
                ours, theirs = said(reply), said(await self._asked(scope, whole(again)))
            except Exception:
                failed(self._add, request_id)
                return
        compare(self._add, request_id, ours, theirs, unit="character", words=str)

    async def _asked(self, scope: Mapping[str, Any], asked: dict[str, Any]) -> Mapping[str, Any]:
        """The server's reply, which counts for no client."""
        TURN.set(Turn())
        body, parts, status = json.dumps(asked).encode(), [], 0
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return given.pop() if given else await asyncio.get_running_loop().create_future()  # it stays

        async def send(message: Mapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        left = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"x-request-id")]
        headers = [*left, (b"content-length", str(len(body)).encode())]
        await self._app({**scope, "state": dict(scope.get("state", {})), "headers": headers}, receive, send)
        text = b"".join(parts)
        if status != 200:
            raise RuntimeError(f"The server answered the canary with {status}: {text.decode(errors='replace')}")
        return json.loads(text)


def is_greedy(asked: Mapping[str, Any]) -> bool:
    """Whether a request has one reply, which it gets whenever it is asked."""
    alone = asked.get("n") in (None, 1) and not asked.get("use_beam_search")
    return alone and not asked.get("stream") and asked.get("temperature") == 0


def greedy(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The same request for one reply without chance, in one piece."""
    return {name: value for name, value in asked.items() if name not in OWN} | {
        "temperature": 0, "n": 1, "stream": False
    }  # fmt: skip


def whole(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The same request of the unpruned model; what its images are compared with stays, as the engine asks for it."""
    return {**asked, PROCESSOR: {**(asked.get(PROCESSOR) or {}), KEEP: "1.0"}}


def said(reply: Mapping[str, Any]) -> str:
    """What the model wrote: its thoughts, its answer and its calls of tools."""
    message = reply["choices"][0]["message"]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    texts = [message.get("reasoning"), message.get("content"), *(f"{one['name']}({one['arguments']})" for one in calls)]
    return "\n".join(text for text in texts if text)
