"""Between vLLM and the clients: the visual tokens of a request beside the usage that its reply states."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vlmprune.serve.usage import with_usage
from vlmprune.serve.vllm.turn import Turn

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

STATES = re.compile(rb'"usage":\s*\{')
DATA, END = b"data: ", b"\n\n"  # of an event in a stream


class Reply:
    """One reply on its way to a client; `send` is what the server is given instead of the client's.

    Attributes:
        read: what it says, unless it is a stream or no JSON.
        answered: whether it was sent to its end, and is no error.
    """

    def __init__(self, turn: Turn, send: Send) -> None:
        self._turn, self._send = turn, send
        self._start: Message | None = None  # held back until the body is known, whose length changes
        self._held, self._streams, self._status = b"", False, 0
        self.read: dict[str, Any] | None = None
        self.answered = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body":
            await self._go_on(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        self._status = message["status"]
        kind = dict(message["headers"]).get(b"content-type", b"")
        self._streams = kind.startswith(b"text/event-stream")
        if self._status == 200 and kind.startswith(b"application/json"):
            self._start = message
        else:
            await self._send(message)

    async def _go_on(self, message: Message) -> None:
        part, more = message.get("body", b""), message.get("more_body", False)
        if self._start is not None:
            self._held += part
            if more:
                return
            part = self._whole(self._held)
            headers = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
            length = (b"content-length", str(len(part)).encode())
            await self._send({**self._start, "headers": [*headers, length]})
        elif self._streams:
            done, end, self._held = (self._held + part).rpartition(END)
            part = END.join(self._event(event) for event in done.split(END)) + end
            part += b"" if more else self._held
        await self._send({**message, "body": part})
        self.answered = not more and self._status == 200

    def _whole(self, body: bytes) -> bytes:
        read = json.loads(body)
        if not isinstance(read, dict):
            return body
        self.read = read
        return _written(with_usage(read, self._turn.usage)) if STATES.search(body) else body

    def _event(self, event: bytes) -> bytes:
        if not STATES.search(event):
            return event
        lines = event.split(b"\n")
        for number, line in enumerate(lines):
            if line.startswith(DATA):
                lines[number] = DATA + _written(with_usage(json.loads(line.removeprefix(DATA)), self._turn.usage))
        return b"\n".join(lines)


def _written(reply: dict[str, Any]) -> bytes:
    """As vLLM writes it."""
    return json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode()
