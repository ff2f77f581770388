"""Going on from an exported model: more words, and more decoder layers in front that start as the identity."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

_LAYER = re.compile(r"^(.*language_model\.layers\.)(\d+)(\..*)$")
_OUTWARD = ("o_proj.weight", "down_proj.weight")  # with zeros here, a layer adds nothing to what it gets


@torch.no_grad()
def load_start(model: nn.Module, folder: Path, ids: dict[str, int]) -> None:
    """Fill `model` with the weights in `folder`, which may know fewer words and have fewer decoder layers.

    Args:
        ids: the token ids of `model`; words that the folder does not know keep their random rows.
    """
    old = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    known = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    shared = [word for word in ids if word in known]
    own = model.state_dict()
    depth, before = (m.config.text_config.num_hidden_layers for m in (model, old))
    for name, value in own.items():
        found = _LAYER.match(name)
        if found and int(found[2]) < depth - before:
            if name.endswith(_OUTWARD):
                value.zero_()
            continue
        source: Tensor = old.state_dict()[f"{found[1]}{int(found[2]) - depth + before}{found[3]}" if found else name]
        if source.shape == value.shape and "embed_tokens" not in name and "lm_head" not in name:
            value.copy_(source)
        else:
            value.normal_(std=float(source.std()))
            value[[ids[word] for word in shared]] = source[[known[word] for word in shared]]
