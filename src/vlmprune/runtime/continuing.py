"""With which position ids transformers goes on behind a prompt.

`generate` counts on from the ids of the prompt's last token. The model itself, asked without position ids, and
`generate` in a further turn, count on from the largest id of the prompt (`rope_deltas`). The two differ where text
behind a video has smaller ids than the video's frames: few frames a second on Qwen2.5-VL, many small ones on Qwen2-VL.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Continuation:
    """What position ids may follow a prompt, in either way.

    Attributes:
        origin: [B] or [axes, B] what `generate` adds to the number of a column (padding of later turns not counted).
        ahead: the same shape, by how much the model's own way is ahead of it.
        largest: [B] the largest id of all prompts so far.
        apart: whether the two ways differ in any row, so that each later forward must be told which it is.
        met: whether a forward has gone on so.
    """

    origin: Tensor
    ahead: Tensor
    largest: Tensor
    apart: bool
    met: bool = False

    def step(self, positions: Tensor, valid: Tensor, columns: int) -> Tensor | None:
        """By how much the ids of a forward are ahead of `generate`'s way: as `ahead`, or 0; None if they fit no way.

        Args:
            positions: [B, S] or [axes, B, S] ids as the model was given them; a further turn's may be on one axis.
            valid: [B, S] real tokens; a row without any fits, and one that begins with padding where both ways are one.
            columns: how many were fed before.
        """
        first = valid.long().argmax(1)
        found = positions[..., torch.arange(len(first), device=first.device), first]
        axes = min(len(self.origin), len(found)) if self.origin.ndim == found.ndim == 2 else 0
        due, ahead = (value[-axes:].to(found.device) for value in (self.origin + columns, self.ahead))
        counted, jumped = (_by_row(found == way) for way in (due, due + ahead))
        # Behind padding in a further turn, a model that is given no ids counts the padding, too.
        padded = ~valid[:, 0] & _by_row(self.ahead.to(found.device) == 0)
        if not bool((counted | jumped | padded | ~valid.any(1)).all()):
            return None
        return self.ahead.to(found.device) * (jumped & ~counted)

    def after(self, step: Tensor, valid: Tensor) -> Continuation:
        """Behind a further forward without images, whose ids were ahead by `step` and lowered by as much."""
        padding = (~valid).sum(1).to(self.origin.device)
        step = step.to(self.origin.device)
        return replace(self, origin=self.origin + step - padding, ahead=self.ahead - step, met=True)

    def select(self, rows: Tensor) -> Continuation:
        """The rows of a cache that was reordered or repeated."""
        origin, ahead, largest = (
            value.index_select(-1, rows.to(value.device)) for value in (self.origin, self.ahead, self.largest)
        )
        return replace(self, origin=origin, ahead=ahead, largest=largest)


def behind(
    positions: Tensor, valid: Tensor, text_row: bool, columns: int, before: Continuation | None, full: bool
) -> Continuation | None:
    """What follows a prompt; None where its last column is padding, which no id counts on from.

    Args:
        positions: [B, S] or [axes, B, S] ids as the model counted them.
        valid: [B, S] real tokens.
        text_row: whether the first of the axes counts tokens, as without M-RoPE.
        columns: how many were fed with it in all.
        before: of an earlier prompt in the same cache.
        full: whether all tokens are known to be real.
    """
    if not full and not bool(valid[:, -1].all()):
        return None
    last = positions[..., -1]
    axes = positions[1:] if text_row else positions
    largest = axes.masked_fill(~valid, -1).amax(-1)
    largest = largest if positions.ndim == 2 else largest.amax(0)
    if before is not None:
        largest = torch.maximum(largest, before.largest.to(largest.device))
    ahead = largest - last
    if positions.ndim == 2:  # one way only: nothing is ahead of the last token
        return Continuation(last + 1 - columns, torch.zeros_like(ahead), largest, apart=False)
    if text_row:
        ahead[0] = 0
    return Continuation(last + 1 - columns, ahead, largest, bool((ahead != 0).any()))


def _by_row(same: Tensor) -> Tensor:
    """[B] whether all axes are the same."""
    return same.all(0) if same.ndim == 2 else same
