"""The canary: some requests also run unpruned, and the two replies are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from vlmprune.serve.comparison import compare, failed
from vlmprune.serve.serving import Serving, StoppedError


class Canary:
    """The comparison for one request. A reply that was drawn at random says nothing: then both are made greedily.

    Args:
        arguments: of the request's generation.
    """

    def __init__(self, serving: Serving, request_id: str, arguments: dict[str, Any]) -> None:
        self._serving, self._request_id = serving, request_id
        config = copy.deepcopy(arguments["generation_config"])
        self._sampled = bool(config.do_sample)
        config.do_sample = False
        config.temperature = config.top_p = config.top_k = None
        self._arguments = {name: value for name, value in arguments.items() if name != "streamer"}
        self._arguments["generation_config"] = config

    def run(self, sequences: Tensor, pruned: Callable[[], AbstractContextManager[None]]) -> None:
        """Compare, log, count. It never raises: the request has been answered.

        Args:
            sequences: [1, S] what the pruned model gave.
            pruned: opens the request's session.
        """
        metrics = self._serving.metrics
        try:
            if self._sampled:
                sequences = self._generate(pruned())
            unpruned = self._generate(nullcontext())
        except StoppedError:
            return
        except Exception:
            failed(metrics.add, self._request_id)
            return
        compare(
            metrics.add,
            self._request_id,
            self._reply(sequences),
            self._reply(unpruned),
            unit="token",
            words=self._words,
        )

    def _generate(self, context: AbstractContextManager[None]) -> Tensor:
        with self._serving.lock, context:
            return self._serving.generate(self._arguments)

    def _reply(self, sequences: Tensor) -> list[int]:
        return sequences[0, self._arguments["input_ids"].shape[-1] :].tolist()

    def _words(self, ids: list[int]) -> str:
        return self._serving.processor.decode(ids, skip_special_tokens=True)
