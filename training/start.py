"""Going on from an exported model: more words, and other decoder layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

_LAYER = re.compile(r"^(.*language_model\.layers\.)(\d+)(\..*)$")
_OUTWARD = ("o_proj.weight", "down_proj.weight")  # with zeros here, a layer adds nothing to what it gets


@torch.no_grad()
def load_start(model: nn.Module, folder: Path, ids: dict[str, int], layers: Sequence[int | None] | None = None) -> None:
    """Fill `model` with the weights in `folder`, which may know fewer words.

    Args:
        ids: the token ids of `model`; words that the folder does not know keep their random rows.
        layers: for each decoder layer of `model`, the layer of the folder that it is; None is a new one that begins as
            the identity. By default the folder's layers are the last ones, and those before them are new.
    """
    old = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    known = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    shared = [word for word in ids if word in known]
    own, given = model.state_dict(), old.state_dict()
    depth, before = (m.config.text_config.num_hidden_layers for m in (model, old))
    layers = layers or [None] * (depth - before) + list(range(before))
    if len(layers) != depth:
        raise SystemExit(f"--layers names {len(layers)} layers; the decoder has {depth}.")
    for name, value in own.items():
        found = _LAYER.match(name)
        origin = layers[int(found[2])] if found else None
        if found and origin is None:
            if name.endswith(_OUTWARD):
                value.zero_()
            continue
        source: Tensor = given[f"{found[1]}{origin}{found[3]}" if found else name]
        if source.shape == value.shape and "embed_tokens" not in name and "lm_head" not in name:
            value.copy_(source)
        else:
            value.normal_(std=float(source.std()))
            value[[ids[word] for word in shared]] = source[[known[word] for word in shared]]
