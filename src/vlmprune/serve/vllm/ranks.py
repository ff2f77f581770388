"""One model on several GPUs: all heads of the encoder are read on each, and what the first one chose holds for all.

vLLM's backend for transformers' models shares out the heads of some encoders (CLIP, InternVL's) and copies others (the
Qwen models') to each GPU. MLPs are shared out, too, but their output is whole again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.roles import merges_inside
from vlmprune.runtime.apart import Apart, Kept
from vlmprune.runtime.taps import AttentionCall


def check_ranks(parallel: Any, config: Any) -> None:
    """Raise UserError where vLLM would share out an encoder that cannot be, before it makes the model.

    Args:
        parallel: vLLM's.
        config: of the model.
    """
    ranks, tower = parallel.tensor_parallel_size, config.vision_config
    if ranks == 1:
        return
    if getattr(tower, "use_qk_norm", False):
        raise UserError(
            f"The encoder of this {config.model_type} normalises queries and keys over all of its heads, which vLLM "
            "shares out over GPUs: leave out --tensor-parallel-size."
        )
    heads = getattr(tower, "num_attention_heads", ranks)  # the Qwen models have another name, and are copied
    if heads % ranks:
        raise UserError(
            f"vLLM shares out the {heads} heads of this model's encoder over GPUs, and {ranks} GPUs do not divide "
            "them: give another --tensor-parallel-size."
        )


def on_ranks(apart: Apart, group: Any) -> Apart:
    """A recipe that reads all heads of an encoder whose heads are shared out.

    Args:
        group: vLLM's, of the GPUs that share the model.

    Raises:
        UserError: a method works in the layers themselves, where each GPU has its own heads alone.
    """
    attentions = [one for one in apart.adapter.encoder_attentions() if is_shared(one)]
    if attentions:
        for stage in apart.recipe.stages:
            if merges_inside(stage.method):
                raise UserError(
                    f"{stage.method.name} merges inside the encoder, whose heads vLLM has shared out over GPUs: leave "
                    "out --tensor-parallel-size."
                )
        for attention in attentions:
            count_own(attention)
        apart.whole = partial(all_heads, group)
    return apart


def count_own(attention: Any) -> None:
    """Let an attention module count the heads that are on this GPU: InternVL's gives its rows a shape by them."""
    attention.num_heads = attention.qkv_proj.num_heads
    attention.embed_dim = attention.num_heads * attention.head_dim


def is_shared(attention: nn.Module) -> bool:
    """Whether an attention module has a part of its heads on this GPU; a copied one has vLLM's layers, too."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    return any(isinstance(layer, ColumnParallelLinear) and layer.tp_size > 1 for layer in attention.modules())


def all_heads(group: Any, attention: nn.Module, call: AttentionCall) -> AttentionCall:
    """The call of an attention module with the heads of all GPUs, in their order."""
    if not is_shared(attention):
        return call
    if call.mask is not None and call.mask.shape[1] > 1:
        raise RuntimeError("A mask for each head is shared out with the heads, and vlmprune does not gather it")
    rows = (group.all_gather(own.contiguous(), dim=1) for own in (call.query, call.key, call.value))
    return replace(call, **dict(zip(("query", "key", "value"), rows, strict=True)))


def first_ranks(group: Any, images: Sequence[Kept]) -> list[Kept]:
    """What the first GPU has kept of the images of a call: equal scores may be ranked otherwise on another one."""
    if group.world_size == 1:
        return list(images)
    return [
        Kept(**{part.name: _firsts(group, getattr(image, part.name)) for part in fields(image)}) for image in images
    ]


def _firsts(group: Any, own: Any) -> Any:
    """A tensor, or several, as the first GPU has them."""
    if isinstance(own, Tensor):
        return group.broadcast(own.clone(memory_format=torch.contiguous_format))
    return tuple(_firsts(group, one) for one in own)
