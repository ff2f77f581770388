"""Between the clients and vLLM: what a request may ask of vlmprune, what its reply says of it, and the canary.

vLLM adds this to its server by `--middleware`. It knows a field for options of a model's processor, which reaches both
halves of the plugin and is part of the key under which an image is cached; that is where the budget travels, what
images are compared with, and how many of them are the latest of their conversation. Everything else that clients could
put into that field stays refused, as vLLM does by itself.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from vlmprune.core.errors import UserError
from vlmprune.serve.comparison import log_comparisons
from vlmprune.serve.media import count_latest, last_question
from vlmprune.serve.vllm.asked import PROCESSOR, Asked, asked_of
from vlmprune.serve.vllm.canary import Canary
from vlmprune.serve.vllm.figures import OF_SERVER, counters
from vlmprune.serve.vllm.replies import Message, Reply, Send
from vlmprune.serve.vllm.turn import TURN, Turn, watch
from vlmprune.serve.wanted import KEEP, LATEST, QUERY, Allowed, take_wanted

Receive = Callable[[], Awaitable[Message]]
App = Callable[..., Awaitable[None]]

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
TRUSTED = (PROCESSOR, "media_io_kwargs")  # what `--trust-request-mm-kwargs` lets requests set


class Requests:
    """The middleware, which finds in vLLM's own configuration how the server was started."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._server: Server | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        server = self._server = self._server or Server(self.app, scope["app"].state)
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        given = await _body(receive)
        if given is not None:
            await server.answer(scope, given, receive, send)


class Server:
    """One process of vLLM's server.

    Args:
        app: what is behind the middleware.
        state: vLLM's, of the whole application.
    """

    def __init__(self, app: App, state: Any) -> None:
        asked = asked_of(state.vllm_config.model_config)
        self._app, self._asked = app, asked
        self._add = counters(OF_SERVER).add
        self._canary = Canary(app, asked.canary, self._add) if asked.canary else None
        if self._canary:
            log_comparisons()
        watch(state.engine_client)

    async def answer(self, scope: Message, given: bytes, receive: Receive, send: Send) -> None:
        try:
            body = rewritten(given, scope["path"], self._asked)
        except UserError as error:
            await _refuse(str(error), send)
            return
        if len(body) != len(given):
            headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        turn, asked = Turn(self._add), dict(scope)  # the server writes into a scope
        reply = Reply(turn, send) if scope["path"].endswith((CHAT, RESPONSES)) else None
        token = TURN.set(turn)
        try:
            await self._app(scope, _again(body, receive), reply.send if reply else send)
        finally:
            TURN.reset(token)
        chat = reply is not None and reply.answered and scope["path"].endswith(CHAT)
        if self._canary and reply and chat and turn.images.number and self._canary.due():
            self._canary.begin(turn.request_id, asked, body, reply.read)


def rewritten(body: bytes, path: str, server: Asked) -> bytes:
    """A request's body as vLLM is to read it.

    Raises:
        UserError: it asks what this server does not allow, or cannot do.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return body  # vLLM says what is wrong with it
    chat = path.endswith(CHAT)
    fills = chat and (server.reads or server.ages is not None)
    if not isinstance(asked, dict) or not ({KEEP, QUERY, *TRUSTED} & asked.keys() or fills):
        return body
    allowed = {KEEP: server.request_keep, QUERY: server.request_query}
    wanted = take_wanted(asked, Allowed(*allowed.values()))
    if server.tells and (other := next((name for name in TRUSTED if asked.get(name)), None)):
        own = " and ".join(name for name, may in allowed.items() if may)
        raise UserError(f"This server takes no {other}: {f'a request can set {own} alone' if own else 'leave it out'}.")
    # in words, as vLLM's key of a cached image may take 1 for another number
    told = {KEEP: None if wanted.keep is None else str(wanted.keep), QUERY: wanted.query}
    if not chat and (name := next((name for name, value in told.items() if value is not None), None)):
        raise UserError(f"{name} is for {CHAT} alone: leave it out.")
    if fills and server.reads:
        told[QUERY] = wanted.query or last_question(asked.get("messages"))
    if fills and server.ages is not None:
        told[LATEST] = str(count_latest(asked.get("messages")))
    if told := {name: value for name, value in told.items() if value is not None}:
        asked[PROCESSOR] = told
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
