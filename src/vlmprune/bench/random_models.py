"""Models of a named architecture's true shape with random weights: right times, and answers that mean nothing.

An architecture is one file in `architectures/`, with the numbers of a public checkpoint's config.json
(`bench.random_inputs` makes what such a model is given).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmprune.core.errors import Option, UserError

FOLDER = Path(__file__).parent / "architectures"
_SPECIAL = 16  # ids at the end of a small vocabulary, for placeholders
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def architectures() -> tuple[str, ...]:
    """The names that `--random` knows."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


@dataclass(frozen=True)
class Architecture:
    """A named architecture, whole or smaller.

    Attributes:
        name: of a file in `architectures/`.
        layers, encoder_layers: of decoder and vision tower, None for all.
        shrink: what heads, widths and vocabulary are divided by.
    """

    name: str
    layers: int | None = None
    encoder_layers: int | None = None
    shrink: int = 1

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Of "qwen3-vl-8b" or "qwen3-vl-8b:layers=2,encoder_layers=2,shrink=16".

        Raises:
            UserError: there is no such architecture or option, or the number is not one.
        """
        name, _, options = text.partition(":")
        if name not in architectures():
            raise UserError(f"There is no architecture {name!r}: choose {', '.join(architectures())}.")
        given: dict[str, int] = {}
        for part in filter(None, options.split(",")):
            key, _, value = part.partition("=")
            if key not in ("layers", "encoder_layers", "shrink"):
                raise UserError(f"An architecture has no option {key!r}: give layers, encoder_layers or shrink.")
            if not value.isdecimal() or not int(value):
                raise UserError(f"The architecture's {key} must be a whole number of at least 1, not {value!r}.")
            given[key] = int(value)
        asked = cls(name, **given)
        for key, most in asked._most().items():
            if (getattr(asked, key) or 0) > most:
                raise UserError(f"The architecture {name} has {most} {key}, not {getattr(asked, key)}.")
        return asked

    def __str__(self) -> str:
        options = {"layers": self.layers, "encoder_layers": self.encoder_layers, "shrink": self.shrink}
        given = [f"{key}={value}" for key, value in options.items() if value != Architecture.__dict__[key]]
        return self.name + (f":{','.join(given)}" if given else "")

    def _numbers(self) -> dict[str, Any]:
        return tomllib.loads((FOLDER / f"{self.name}.toml").read_text(encoding="utf-8"))

    def _most(self) -> dict[str, int]:
        numbers = self._numbers()
        return {
            "layers": numbers["text_config"]["num_hidden_layers"],
            "encoder_layers": _first(numbers["vision_config"], "num_hidden_layers", "depth")[1],
        }

    def config(self) -> Any:
        """The transformers configuration."""
        from transformers import AutoConfig

        numbers = self._numbers()
        text, vision = numbers["text_config"], numbers["vision_config"]
        if self.layers is not None:
            text["num_hidden_layers"] = self.layers
        if self.encoder_layers is not None:
            vision[_first(vision, "num_hidden_layers", "depth")[0]] = self.encoder_layers
            _scale_layers(vision, self.encoder_layers, self._most()["encoder_layers"])
        if self.shrink > 1:
            _shrink(text, "num_attention_heads", self.shrink)
            _shrink(vision, _first(vision, "num_attention_heads", "num_heads")[0], self.shrink)
            text["vocab_size"] = max(1024, text["vocab_size"] // self.shrink)
            ids = [key for key in numbers if key.endswith(("_token_id", "_token_index"))]
            numbers.update({key: text["vocab_size"] - _SPECIAL + n for n, key in enumerate(ids)})
            if "out_hidden_size" in vision:
                vision["out_hidden_size"] = text["hidden_size"]
        return AutoConfig.for_model(**numbers)


def _first(numbers: Mapping[str, Any], *names: str) -> tuple[str, Any]:
    """The first of these names that a configuration has, and its value."""
    return next((name, numbers[name]) for name in names if name in numbers)


def _scale_layers(vision: dict[str, Any], layers: int, most: int) -> None:
    """Layers that a tower names by number (full attention, deepstack), at the same share of its depth."""
    for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if name in vision:
            vision[name] = sorted({min(layers - 1, layer * layers // most) for layer in vision[name]})


def _shrink(part: dict[str, Any], heads: str, by: int) -> None:
    """Fewer heads of the same width, and all widths in proportion."""
    before = part[heads]
    part[heads] = after = max(1, before // by)
    for name in ("hidden_size", "intermediate_size"):
        part[name] = part[name] * after // before
    if "num_key_value_heads" in part:
        part["num_key_value_heads"] = math.gcd(after, max(1, part["num_key_value_heads"] // by))


def random_model(
    architecture: Architecture, device: str, dtype: str | None = None, attention: str | None = None
) -> Any:
    """A model with random weights, the same on every call.

    Args:
        architecture: which.
        device: where.
        dtype: "float32", "bfloat16" or "float16"; without it, float32 on a CPU and bfloat16 elsewhere.
        attention: transformers' name of an implementation; its own choice without it.

    Raises:
        UserError: unknown dtype, no such device, or no room there.
    """
    from transformers import AutoModelForImageTextToText

    if dtype is not None and dtype not in _DTYPES:
        raise UserError(Option("dtype", dtype), f" is not a precision: choose {', '.join(_DTYPES)}.")
    kind = _DTYPES[dtype] if dtype else torch.float32 if device == "cpu" else torch.bfloat16
    config = architecture.config()
    torch.manual_seed(0)
    try:
        with torch.device(device):
            given = {} if attention is None else {"attn_implementation": attention}
            model = AutoModelForImageTextToText.from_config(config, dtype=kind, **given).eval()
    except (RuntimeError, AssertionError, ImportError, ValueError) as error:  # no such device, no room, no such backend
        reason = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        raise UserError(f"The model {architecture} cannot be made on {device!r}: {reason}.") from error
    # A random model would write placeholders too, which stand for images that are not there.
    ids = {value for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index")) and value}
    model.generation_config.suppress_tokens = sorted(ids)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
