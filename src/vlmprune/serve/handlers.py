"""transformers' own handlers of chat completions and responses, with the model's generation under a session.

What is taken for granted of them: they turn messages into a prompt by `get_processor_inputs_from_messages`, and
generate by the two functions of a `GenerateManager`, which calls nothing of the model but `generate`. A release that
goes another way gets an error for each request, and never an unpruned reply.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import GenerateManager, GenerationState, Modality

from vlmprune.core.errors import UserError, sentence_of
from vlmprune.serve.media import open_media
from vlmprune.serve.serving import Serving
from vlmprune.serve.turn import Turn, UnseenError
from vlmprune.serve.usage import with_usage

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, TemplateError)  # of a wrong request
KINDS = {"client": "invalid_request_error", "server": "server_error"}
_TURN: ContextVar[Turn] = ContextVar("turn")


class OneModel(ModelManager):
    """The model that is served, under the name by which it was asked for. It loads and unloads nothing."""

    def __init__(self, serving: Serving) -> None:
        self._pair = serving.model, serving.processor
        super().__init__(force_model=serving.loaded.name)
        try:
            modality = self.get_model_modality(serving.model, processor=serving.processor)
        except ValueError:
            modality = None
        if modality not in (Modality.VLM, Modality.MULTIMODAL):
            raise UserError(f"transformers' server takes no images for a {type(serving.model).__name__}.")

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> Any:
        return self._pair

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id


class PrunedManager(GenerateManager):
    """Generates for the request that calls it, under that request's session."""

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().generate_streaming(self._standin(inputs), processor, inputs, *args, **kwargs)

    async def generate_non_streaming(self, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().generate_non_streaming(self._standin(inputs), processor, inputs, *args, **kwargs)

    def _standin(self, inputs: Any) -> Any:
        standin = _TURN.get().submit(inputs)
        standin.later = self.submit
        return standin


class PrunedState(GenerationState):
    """One manager: all generations take place in one thread, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self._manager = PrunedManager()

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        if use_cb:
            raise UnseenError("it asked for continuous batching")
        return self._manager


class _Pruned:
    """What both handlers add to transformers'."""

    def __init__(self, serving: Serving, manager: OneModel, state: PrunedState) -> None:
        super().__init__(manager, state)  # type: ignore[call-arg]
        self._serving = serving

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        turn = Turn(self._serving, body, request_id)
        await open_media(body)
        token = _TURN.set(turn)
        try:
            response = await super().handle_request(body, request_id)  # type: ignore[misc]
        except MALFORMED as error:
            if turn.submitted or isinstance(error, UserError):
                raise
            raise UserError(f"The request cannot be read: {_reason(error)}.") from error
        finally:
            _TURN.reset(token)
        if not turn.submitted:
            raise UnseenError("it answered without a generation that vlmprune saw")
        if isinstance(response, StreamingResponse):
            response.body_iterator = told(response.body_iterator, turn)
            return response
        if turn.tokens is None:
            raise UnseenError("it answered without a forward of the model")
        return JSONResponse(with_usage(json.loads(response.body), turn.usage))

    def get_processor_inputs_from_messages(self, messages: list[dict[str, Any]], modality: Any) -> Any:
        _TURN.get().read(messages)
        return super().get_processor_inputs_from_messages(messages, modality)  # type: ignore[misc]


class PrunedChat(_Pruned, ChatCompletionHandler):
    """`POST /v1/chat/completions`."""


class PrunedResponses(_Pruned, ResponseHandler):
    """`POST /v1/responses`."""


def error_event(error: BaseException) -> str:
    """An error in the middle of a stream, as OpenAI's clients read it."""
    return f"data: {json.dumps({'error': {'message': str(error), 'type': KINDS[blamed(error)]}})}\n\n"


def blamed(error: BaseException | None) -> str:
    """Whose fault an error of a generation is: transformers, too, refuses settings by a ValueError."""
    return "client" if isinstance(error, ValueError) else "server"


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else sentence_of(error)


async def told(chunks: Any, turn: Turn) -> AsyncIterator[str]:
    """The events of a stream with the visual tokens in them, and its errors in words that a client can read."""
    metrics, failed = turn.serving.metrics, False
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                for event in chunk.split("\n\n")[:-1]:
                    read = _read(event)
                    if read is None or isinstance(read.get("error"), str):  # without a type, and quotes not escaped
                        failed = True
                        yield error_event(turn.error or RuntimeError(event.removeprefix("data: ")))
                    else:
                        yield f"data: {json.dumps(with_usage(read, turn.usage), ensure_ascii=False)}\n\n"
        if turn.tokens is None and turn.error is None:
            turn.error = UnseenError("a stream ended without a forward of the model")
            yield error_event(turn.error)
        if turn.error is not None or failed:
            metrics.add({f"{blamed(turn.error)}_errors_total": 1})
    except (GeneratorExit, asyncio.CancelledError):
        metrics.add({"cancelled_total": 1})
        raise


def _read(event: str) -> dict[str, Any] | None:
    """What an event carries, None where it is not JSON."""
    try:
        read = json.loads(event.removeprefix("data: "))
    except ValueError:
        return None
    return read if isinstance(read, dict) else None
