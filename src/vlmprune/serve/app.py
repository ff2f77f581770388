"""The server: its addresses, its errors, and how it runs."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import uuid
from collections.abc import Callable
from socket import socket
from typing import Any

import uvicorn
from fastapi import HTTPException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from vlmprune.core.errors import UserError
from vlmprune.serve.handlers import KINDS, OneModel, PrunedChat, PrunedResponses, PrunedState, blamed
from vlmprune.serve.metrics import CONTENT_TYPE
from vlmprune.serve.serving import Serving

LOG = logging.getLogger("vlmprune.serve")
REQUEST_ID = "x-request-id"
PATIENCE = 5  # seconds that streams have left when the server is stopped


def build_app(serving: Serving) -> Starlette:
    """The application, to be run by any ASGI server in one process.

    Raises:
        UserError: transformers' server does not take this model.
    """
    manager, state = OneModel(serving), PrunedState()
    chat, responses = PrunedChat(serving, manager, state), PrunedResponses(serving, manager, state)
    listed = {"id": serving.loaded.name, "object": "model", "created": 0, "owned_by": "vlmprune"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [listed]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(serving.metrics.text(), media_type=CONTENT_TYPE)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", _answers(serving, chat), methods=["POST"]),
            Route("/v1/responses", _answers(serving, responses), methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
            Route("/metrics", metrics),
        ]
    )


def _answers(serving: Serving, handler: Any) -> Callable[[Request], Any]:
    """An endpoint that answers by a handler, and every error by a sentence in OpenAI's form."""

    async def answer(request: Request) -> Response:
        given = request.headers.get(REQUEST_ID, "")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given) else str(uuid.uuid4())
        serving.metrics.add({"requests_total": 1})
        response = await _answered(serving, handler, await request.body(), request_id)
        response.headers[REQUEST_ID] = request_id
        return response

    return answer


async def _answered(serving: Serving, handler: Any, content: bytes, request_id: str) -> Response:
    try:
        body = _body(content)
        return await handler.handle_request(body, request_id)
    except HTTPException as error:
        status, sentence = error.status_code, str(error.detail)
    except Exception as error:
        status, sentence = 400 if blamed(error) == "client" else 500, str(error) or type(error).__name__
        if not isinstance(error, UserError) or error.__cause__ is not None:
            LOG.info("request %s failed", request_id, exc_info=True)
    kind = "client" if status < 500 else "server"
    serving.metrics.add({f"{kind}_errors_total": 1})
    return JSONResponse({"error": {"message": sentence, "type": KINDS[kind]}}, status_code=status)


def _body(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise UserError("The body of the request is not JSON.") from None
    if not isinstance(body, dict):
        raise UserError("The body of the request must be a JSON object.")
    return body


def run(serving: Serving, app: Starlette, at: socket) -> None:
    """Serve until the process is told to stop."""
    config = uvicorn.Config(app, log_level="info", timeout_graceful_shutdown=PATIENCE)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has stopped
        uvicorn.Server(config).run(sockets=[at])
    serving.stop()
