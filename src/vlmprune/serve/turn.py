"""One request on its way through transformers' server: what it asks, and its one pruned generation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vlmprune.core.errors import UserError
from vlmprune.serve.canary import Canary
from vlmprune.serve.media import count_media, parts_of, text_of
from vlmprune.serve.serving import Serving
from vlmprune.serve.usage import usage_of
from vlmprune.serve.wanted import check_template_options, take_wanted, torch_seed

SEEN = "transformers' server went another way than vlmprune knows, so the reply is not known to be pruned: {}."


class UnseenError(RuntimeError):
    """The model may have answered past the pruning. It is the server's fault, not the request's."""

    def __init__(self, what: str) -> None:
        super().__init__(SEEN.format(what))


class Turn:
    """One request.

    Attributes:
        submitted: whether its generation was handed to transformers' thread.
        tokens: visual tokens before and after pruning; None until the prompt has been run.
        error: what its generation failed with.
    """

    def __init__(self, serving: Serving, body: dict[str, Any], request_id: str) -> None:
        """Take vlmprune's fields out of the body, or raise UserError."""
        self.serving, self.request_id = serving, request_id
        self._wanted = take_wanted(body, serving.allowed)
        check_template_options(body.get("chat_template_kwargs"))
        # transformers would set it now, in the middle of another request's draws
        self._torch_seed = torch_seed(body.pop("seed", None))
        self._session: Any = None
        self._images = 0
        self.submitted = False
        self.tokens: tuple[int, int] | None = None
        self.error: Exception | None = None

    @property
    def usage(self) -> dict[str, int]:
        """What the reply says about the request's visual tokens."""
        return usage_of(*(self.tokens or (0, 0)))

    def read(self, messages: list[dict[str, Any]]) -> None:
        """Look at the conversation in transformers' own words, before it becomes a prompt.

        Raises:
            UserError: part of it would be left out in silence, or the model cannot be pruned so.
        """
        parts = [parts_of(message) for message in messages]
        counts = [count_media(of) for of in parts]
        asked = [text_of(of) for message, of in zip(messages, parts, strict=True) if message.get("role") == "user"]
        latest = next((count for count in reversed(counts) if count), 1)
        self._images = sum(counts)
        self._session = self.serving.session(self._wanted, asked[-1] if asked else None, latest)

    def submit(self, inputs: Any) -> Standin:
        """What transformers' server is given for the model, for this prompt.

        Raises:
            UserError: the prompt is longer than the model's context.
        """
        if self._session is None:
            raise UnseenError("it made a prompt without reading its messages")
        length = int(inputs["input_ids"].shape[-1])
        limit = getattr(self.serving.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and length >= limit:
            raise UserError(
                f"The prompt has {length} tokens before pruning, and the model takes {limit} with the reply: send less."
            )
        self.submitted = True
        return Standin(self)

    def generate(self, arguments: dict[str, Any], later: Callable[[Callable[[], None]], Any] | None = None) -> Any:
        """`model.generate` under this request's session, alone on the model.

        Args:
            arguments: as transformers' server gives them.
            later: runs a function in the same thread, behind the requests that wait already.
        """
        serving, began = self.serving, time.perf_counter()
        canary = self._canary(arguments) if later is not None else None
        try:
            with serving.lock, self._open():
                if self._torch_seed is not None:
                    torch.manual_seed(self._torch_seed)
                sequences = serving.generate(arguments)
            if self.tokens is None:
                raise UnseenError("the model's forward was not called")
        except Exception as error:
            self.error = error
            raise
        serving.metrics.add({"generation_seconds_total": time.perf_counter() - began})
        if canary is not None and later is not None:
            later(lambda: canary.run(sequences, self._again))
        return sequences

    def _canary(self, arguments: dict[str, Any]) -> Canary | None:
        """The comparison with the unpruned model, where it is this request's turn."""
        drawn = self._images > 0 and random.random() < self.serving.canary
        return Canary(self.serving, self.request_id, arguments) if drawn else None

    @contextmanager
    def _again(self) -> Iterator[None]:
        """The same pruning a second time."""
        with self._session:
            yield

    @contextmanager
    def _open(self) -> Iterator[None]:
        """The session, with a look at its first forward."""
        model, began = self.serving.model, 0.0

        def before(*_: object) -> None:
            nonlocal began
            began = began or time.perf_counter()

        def after(*_: object) -> None:
            if self.tokens is None:
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)
                self._check_prefill(time.perf_counter() - began)

        with self._session:
            handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def _check_prefill(self, seconds: float) -> None:
        """Take down what the session did in the prefill, before the first token of the reply is there."""
        report = self._session.last
        seen = len(report.kept[0]) if report.kept else 0
        if seen != self._images:
            raise UnseenError(f"the request has {self._images} images, and {seen} of them were pruned")
        self.tokens = report.tokens[0] if report.tokens else (0, 0)
        self.serving.metrics.add(
            {
                "images_total": seen,
                "visual_tokens_before_total": self.tokens[0],
                "visual_tokens_after_total": self.tokens[1],
                "selection_seconds_total": report.seconds,
                "prefill_seconds_total": seconds,
            }
        )


class Standin:
    """Stands in for the model where transformers' server generates: it generates under the request's session.

    The model's plain attributes can be read. It has no other method, as that would pass by the pruning.

    Attributes:
        later: see `Turn.generate`.
    """

    later: Callable[[Callable[[], None]], Any] | None = None

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def generate(self, **arguments: Any) -> Any:
        return self._turn.generate(arguments, self.later)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._turn.serving.model, name)
        if callable(value):
            raise UnseenError(f"it asked for the model's {name}")
        return value
