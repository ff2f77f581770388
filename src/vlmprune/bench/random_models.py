"""Models of a named architecture's true shape with random weights: right times, and answers that mean nothing.

An architecture is one file in `architectures/`, with the numbers of a public checkpoint's config.json. Its inputs are
made as tensors, so that neither a processor nor a picture is needed, and any number of visual tokens can be had that
the architecture makes.
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
TEXT_TOKENS = 40
_BEFORE = 10  # of them, those before the picture
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


def random_inputs(model: Any, visual: int, batch: int, text: int = TEXT_TOKENS) -> dict[str, torch.Tensor]:
    """Inputs of one prompt a sample, with so many visual tokens.

    Args:
        model: of `random_model`.
        visual: visual tokens a sample.
        batch: samples, each with pictures of its own.
        text: tokens of text.

    Raises:
        UserError: the architecture makes no picture of so many tokens; the sentence names the nearest numbers.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    vision = config.vision_config
    if hasattr(vision, "spatial_merge_size"):
        pictures, counts = _grid(vision, visual, batch, generator)
    elif getattr(config, "image_grid_pinpoints", None):
        pictures, counts = _canvases(config, visual, batch, generator)
    else:
        pictures, counts = _tiles(config, visual, batch, generator)
    words = torch.randint(
        3, min(1000, config.get_text_config().vocab_size) - _SPECIAL, (batch, text), generator=generator
    )
    image = torch.full((batch, 1), config.image_token_id)
    parts = [words[:, :_BEFORE], *(image.expand(batch, count) for count in counts), words[:, _BEFORE:]]
    ids = torch.cat(parts, dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pictures}
    if "image_grid_thw" in pictures:
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    place, kind = model.device, model.dtype
    return {name: v.to(place, kind) if v.is_floating_point() else v.to(place) for name, v in inputs.items()}


def usual_visual(model: Any) -> int:
    """Visual tokens of one picture of a usual size: 24 x 24, or what fills LLaVA-NeXT's largest canvas."""
    config = model.config
    if getattr(config, "image_grid_pinpoints", None):
        return max(_sizes(config))
    if hasattr(config.vision_config, "spatial_merge_size"):
        return 576
    return _each(config)


Pictures = tuple[dict[str, torch.Tensor], list[int]]


def _grid(vision: Any, visual: int, batch: int, generator: torch.Generator) -> Pictures:
    """Qwen's: one picture of any grid, here the one that is most nearly square."""
    rows = max(n for n in range(1, math.isqrt(visual) + 1) if visual % n == 0)
    cols = visual // rows
    if cols > 4 * rows:
        near = math.isqrt(visual)
        raise UserError(
            f"{visual} visual tokens make no grid that is nearly square: give {near * near} or {near * (near + 1)}."
        )
    side = vision.spatial_merge_size
    patches, width = visual * side**2, 3 * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.randn(batch * patches, width, generator=generator),
        "image_grid_thw": torch.tensor([[1, rows * side, cols * side]] * batch),
    }, [visual]


def _canvases(config: Any, visual: int, batch: int, generator: torch.Generator) -> Pictures:
    """LLaVA-NeXT's: one picture that fills one of its canvases to the edge."""
    vision = config.vision_config
    sizes = _sizes(config)
    if visual not in sizes:
        known = ", ".join(map(str, sorted(sizes)))
        raise UserError(f"{config.model_type} makes no picture of {visual} visual tokens: give one of {known}.")
    height, width = sizes[visual]
    tiles = 1 + (height // vision.image_size) * (width // vision.image_size)
    return {
        "pixel_values": torch.randn(batch, tiles, 3, vision.image_size, vision.image_size, generator=generator),
        "image_sizes": torch.tensor([[height, width]] * batch),
    }, [visual]


def _sizes(config: Any) -> dict[int, tuple[int, int]]:
    """Height and width of each canvas, by its visual tokens."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return {
        side**2 + down * side * (across * side + 1): (height, width)
        for height, width in config.image_grid_pinpoints
        for down, across in [(height // vision.image_size, width // vision.image_size)]
    }


def _tiles(config: Any, visual: int, batch: int, generator: torch.Generator) -> Pictures:
    """Pictures of the tower's own size, as many as it takes: LLaVA-1.5's, or InternVL's tiles."""
    height, width = _pair(config.vision_config.image_size)
    each = _each(config)
    count, rest = divmod(visual, each)
    if rest or not count:
        raise UserError(
            f"{config.model_type} makes {each} visual tokens of a picture: give a multiple of that, not {visual}."
        )
    return {"pixel_values": torch.randn(batch * count, 3, height, width, generator=generator)}, [each] * count


def _each(config: Any) -> int:
    """Visual tokens of a picture of the tower's own size."""
    vision = config.vision_config
    rows, cols = (size // patch for size, patch in zip(_pair(vision.image_size), _pair(vision.patch_size)))
    return round(rows * cols * getattr(config, "downsample_ratio", 1) ** 2)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
