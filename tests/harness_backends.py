"""Flash attention written out for CPUs, and flex attention without torch's compiler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash_utils
from transformers.modeling_utils import PreTrainedModel

FLASH, FLEX = "flash_attention_2", "flex_attention"


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, causal: bool, window: tuple[int, int], cap: float
) -> Tensor:
    """One sequence: query [R, H, d], key and value [S, Hkv, d], the last query beside the last key.

    A query that sees nothing gets zeros. `window` counts keys to the left and to the right, -1 for all.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = torch.einsum("rhd,shd->hrs", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if cap > 0:
        logits = cap * torch.tanh(logits / cap)
    back = torch.arange(len(query))[:, None] + len(key) - len(query) - torch.arange(len(key))
    left, right = window[0], 0 if causal else window[1]
    seen = torch.ones_like(back, dtype=torch.bool)
    if left >= 0:
        seen &= back <= left
    if right >= 0:
        seen &= back >= -right
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num()
    return torch.einsum("hrs,shd->rhd", weights, value)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, deterministic: bool = False,
) -> Tensor:  # fmt: skip
    return torch.stack([attend(*one, softmax_scale, causal, window_size, softcap) for one in zip(q, k, v)])


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, deterministic: bool = False,
) -> Tensor:  # fmt: skip
    pieces = []
    for borders, packed in ((cu_seqlens_q, (q,)), (cu_seqlens_k, (k, v))):
        assert borders.dtype == torch.int32
        assert int(borders[-1]) == len(packed[0])  # the kernel would read on, or leave keys out, in silence
        pieces += [one.split(borders.diff().tolist()) for one in packed]
    return torch.cat([attend(*one, softmax_scale, causal, window_size, softcap) for one in zip(*pieces, strict=True)])


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers believes that flash-attn is installed and runs on this machine."""
    loaded = {
        "_loaded_implementation": FLASH,
        "_flash_fn": flash_attn_func,
        "_flash_varlen_fn": flash_attn_varlen_func,
        "_flash_with_kvcache_fn": None,
        "_pad_fn": flash_utils._pad_input,
        "_unpad_fn": flash_utils._unpad_input,
        "_process_flash_kwargs_fn": flash_utils._lazy_define_process_function(flash_attn_varlen_func),
        "_process_with_kvcache_kwargs_fn": dict,
    }
    for name, value in loaded.items():
        monkeypatch.setattr(flash_utils, name, value)
    version = flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(version, "general_availability_check", lambda *args, **kwargs: True)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *args, **kwargs: True)


@pytest.fixture
def flex() -> Iterator[None]:
    """Flex attention and its masks without torch.compile, which transformers wraps around both."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
