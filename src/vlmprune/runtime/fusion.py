"""Prune-Aware Fusion in one decoder layer of a prefill: the kernel runs as ever, and its output is corrected."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.fusion import Fusion
from vlmprune.models.base import Adapter
from vlmprune.runtime.decoder_reading import first_new, seen_keys
from vlmprune.runtime.flow import Segment
from vlmprune.runtime.taps import AttentionCall, Edit
from vlmprune.scores import computed_by
from vlmprune.scores.fusion import Rows, fused_attention
from vlmprune.scores.precision import unrounded


class FusedLayer:
    """Edits the attention of a decoder layer while it runs.

    Args:
        segment: the tokens of the layer.
        candidates: for each row of the batch, the physical indices of each image's candidates.
        tail: tokens at the end of each row that are not prompt, and that fusion leaves alone like what is decoded.
        scores: as in `prune`.

    Attributes:
        number: of the layer.
        running: from `start` to `stop`.
        seconds: that the corrections took.
        scored: what computed statistics of the attention.
        raised: share of the rows (a query at a head) that saw a candidate whose attention fusion raised anywhere.
    """

    def __init__(
        self,
        adapter: Adapter,
        layer: int,
        segment: Segment,
        candidates: list[list[Tensor]],
        tail: int,
        fusion: Fusion,
        scores: str = "auto",
    ) -> None:
        self.adapter, self.number, self.segment, self.fusion = adapter, layer, segment, fusion
        self.candidates, self.tail, self.scores = candidates, tail, scores
        self.scored: set[str] = set()
        self.seconds = 0.0
        self._counts = (0, 0)
        self._ran = self.running = False
        self._edit = Edit(adapter.decoder_attention(layer), self._correct)

    def start(self) -> None:
        self._edit.start()
        self.running = True

    def stop(self) -> None:
        self._edit.stop()
        self.running = False

    def check(self) -> None:
        """Raise UserError where the layer's attention went past transformers' attention functions."""
        if not self._ran:
            raise UserError(
                f"Fusion edits the attention of decoder layer {self.number}, which does not use transformers' "
                "attention functions."
            )

    @property
    def raised(self) -> float:
        seen, raised = self._counts
        return raised / seen if seen else 0.0

    def _correct(self, call: AttentionCall, output: Tensor) -> Tensor:
        start, self._ran = time.perf_counter(), True
        output = output.clone()
        with computed_by(self.scores) as ran:
            for row, groups in enumerate(self.candidates):
                groups = [group for group in groups if len(group)]
                if groups:
                    self._correct_row(call, output, row, groups)
        self.scored |= ran
        self.seconds += time.perf_counter() - start
        return output

    def _correct_row(self, call: AttentionCall, output: Tensor, row: int, groups: list[Tensor]) -> None:
        layout, device = self.segment.layout, call.query.device
        begin = first_new(call, self.segment)
        end = begin + layout.source.shape[1]
        asking = layout.valid[row].clone()
        asking[torch.cat(groups)] = False
        queries = asking.nonzero().squeeze(1)
        prompt = len(asking) - self.tail
        queries = queries[queries < prompt].to(device)
        columns = [group.to(device) + begin for group in groups]
        visible = seen_keys(self.adapter, self.segment, call, row, queries, self.number)
        some = visible[:, torch.cat(columns)].any(1)
        queries, visible = queries[some], visible[some]
        if not len(queries):
            return
        query, key, value = call.query[row][:, queries], call.key[row, :, :end], call.value[row, :, :end]
        rows = Rows(query, key, value, call.scaling, visible, call.softcap, call.sinks)
        with unrounded(query.device):
            output[row, queries], raised = fused_attention(output[row, queries], rows, columns, **asdict(self.fusion))
        seen, before = self._counts
        self._counts = seen + raised.numel(), before + int(raised.sum())
