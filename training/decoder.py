"""A decoder forward over packed questions, written over the parameters of Llama- and Qwen2-style layers.

Rows are [prefix | text]: the prefix (image and the words around it) is causal, a text token sees the whole prefix and
the earlier tokens of its own question. Attention is written out in matrix products, which is faster on CPU at
these sizes than the fused kernel; the last layer runs for the text rows only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.cuts import Late

_GONE = -1e4  # added to the scores of keys that have left


def text_bias(segment: Tensor, prefix: int) -> Tensor:
    """Additive mask [B, 1, T, prefix + T] for text queries: 0 where a token is seen, -inf elsewhere."""
    length = segment.shape[1]
    place = torch.arange(length, device=segment.device)
    own = (segment[:, :, None] == segment[:, None, :]) & (place[None, :, None] >= place[None, None, :])
    bias = torch.zeros(own.shape, device=segment.device).masked_fill(~own, float("-inf"))
    return torch.nn.functional.pad(bias, (prefix, 0))[:, None]


def prefix_bias(prefix: int, device: torch.device) -> Tensor:
    """Causal additive mask [prefix, prefix]."""
    return torch.full((prefix, prefix), float("-inf"), device=device).triu(1)


def rotary(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [..., L, width] of rotary positions [..., L], the two halves alike."""
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions[..., None].float() / theta**steps
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rms_norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    """The layer's RMSNorm, in float32."""
    hidden = hidden.float()
    scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * (hidden * scale)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [..., L, width], the first half against the second."""
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return (states * cos + turned * sin).to(states.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention over [..., L, width], with an additive mask."""
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return weights.to(value.dtype) @ value


def _without(bias: Tensor, hide: Tensor | None) -> Tensor:
    """A mask over the prefix, or the prefix and the text, without the prefix tokens that have left."""
    return bias if hide is None else bias + nn.functional.pad(hide, (0, bias.shape[-1] - hide.shape[-1]))


def decode(
    layers: nn.ModuleList,
    norm: nn.Module,
    heads: int,
    kv_heads: int,
    hidden: Tensor,
    prefix: int,
    segment: Tensor,
    cos: Tensor,
    sin: Tensor,
    tap: int = 0,
    early: int = 0,
    late: Late | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Final hidden states of the text rows, those of the prefix after layer `tap`, of the text after `early`.

    Args:
        layers, norm: the decoder layers and the final norm of the Hugging Face text model.
        hidden: [B, prefix + T, d] embeddings.
        prefix: length of the prefix.
        segment: [B, T], see `TextBatch`.
        cos, sin: [B or 1, prefix + T, d / heads] rotary tables.
        tap, early: numbers of layers before the last.
        late: tokens of the prefix that leave on the way, see `Late`; `dropped` is [B, prefix].

    Returns:
        [B, T, d], [B, prefix, d] and [B, T, d], float32; the first and the last went through the final norm.
    """
    batch, _, width = hidden.shape
    cos, sin = cos[:, None], sin[:, None]
    after, before = text_bias(segment, prefix), prefix_bias(prefix, hidden.device)
    tapped = hidden[:, :prefix]
    gone = None if late is None else late.dropped[:, None, None].float() * _GONE
    for number, layer in enumerate(layers):
        last = number == len(layers) - 1
        attention = layer.self_attn
        normed = rms_norm(layer.input_layernorm, hidden)
        hide = None if late is None else gone * (late.layer <= number)
        asking = normed[:, prefix:] if last else normed

        def split(states: Tensor, count: int) -> Tensor:
            return states.view(batch, states.shape[1], count, width // heads).transpose(1, 2)

        query = split(attention.q_proj(asking), heads)
        key, value = split(attention.k_proj(normed), kv_heads), split(attention.v_proj(normed), kv_heads)
        key = rotate(key, cos, sin)
        if kv_heads != heads:
            key = key.repeat_interleave(heads // kv_heads, dim=1)
            value = value.repeat_interleave(heads // kv_heads, dim=1)
        if last:
            query = rotate(query, cos[:, :, prefix:], sin[:, :, prefix:])
            mixed = attend(query, key, value, _without(after, hide))
            hidden = hidden[:, prefix:]
        else:
            query = rotate(query, cos, sin)
            ahead = attend(
                query[:, :, :prefix],
                key[:, :, :prefix],
                value[:, :, :prefix],
                _without(before, hide),
            )
            mixed = torch.cat((ahead, attend(query[:, :, prefix:], key, value, _without(after, hide))), dim=2)
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(batch, -1, width))
        normed = rms_norm(layer.post_attention_layernorm, hidden)
        gate, up = layer.mlp.gate_proj(normed), layer.mlp.up_proj(normed)
        hidden = hidden + layer.mlp.down_proj(torch.nn.functional.silu(gate) * up)
        if number == tap:
            tapped = hidden[:, :prefix]
        if number == early:
            halfway = rms_norm(norm, hidden[:, prefix:])
    return rms_norm(norm, hidden), tapped, halfway
