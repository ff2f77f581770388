"""Between the clients and vLLM: the budget that a request gives itself, where the server allows that.

vLLM adds this to its server by `--middleware`. It knows a field for options of a model's processor, which reaches both
halves of the plugin and is part of the key under which an image is cached; that is where the budget travels. Everything
else that clients could put into that field stays refused, as vLLM does by itself.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar

from vlmprune.core.errors import UserError
from vlmprune.serve.wanted import KEEP, QUERY, Allowed, take_wanted

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CHAT = "/v1/chat/completions"
PROCESSOR = "mm_processor_kwargs"
TRUSTED = (PROCESSOR, "media_io_kwargs")  # what `--trust-request-mm-kwargs` lets requests set


class NoBudgets:
    """For a server whose requests have no budget of their own: refuses one, which vLLM would drop without a word."""

    allowed: ClassVar[Allowed] = Allowed()

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        given = await _body(receive)
        if given is None:
            return
        try:
            body = rewritten(given, scope["path"], self.allowed)
        except UserError as error:
            await _refuse(str(error), send)
            return
        if len(body) != len(given):
            headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self.app(scope, _again(body, receive), send)


class Budgets(NoBudgets):
    """For a server that was started with --allow-request-keep."""

    allowed = Allowed(keep=True)


def rewritten(body: bytes, path: str, allowed: Allowed) -> bytes:
    """A request's body as vLLM is to read it.

    Raises:
        UserError: it asks what this server does not allow, or cannot do.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return body  # vLLM says what is wrong with it
    if not isinstance(asked, dict) or not {KEEP, QUERY, *TRUSTED} & asked.keys():
        return body
    if asked.get(QUERY) is not None:
        raise UserError(f"vLLM encodes an image apart from its question: leave out {QUERY}.")
    keep = take_wanted(asked, allowed).keep
    if allowed.keep and (other := next((name for name in TRUSTED if asked.get(name)), None)):
        raise UserError(f"This server takes no {other}: a request can set {KEEP} alone.")
    if keep is not None:
        if not path.endswith(CHAT):
            raise UserError(f"{KEEP} is for {CHAT} alone: leave it out.")
        asked[PROCESSOR] = {KEEP: str(keep)}  # in words, as vLLM's key of a cached image may take 1 for another number
    return json.dumps(asked).encode()


async def _body(receive: Receive) -> bytes | None:
    """All of a request's body, or None if the client has left."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then what comes after it, such as that the client leaves."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return left.pop() if left else await receive()

    return received


async def _refuse(message: str, send: Send) -> None:
    """Answer as vLLM does to a wrong request."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    content = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": content})
