"""What needs read of the vision encoder: one call of `get_*_features`, image by image, as rows of slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.needs import USED, Depth, EncoderLayer, EncoderNeed, Need, PromptNeed
from vlmprune.core.recipe import Recipe
from vlmprune.core.view import TowerRows
from vlmprune.models.base import Adapter
from vlmprune.runtime.taps import AttentionCall, capture, cls_first, joined_heads
from vlmprune.scores import attention_rows, received_attention


class EncoderOf:
    """A model's vision tower, as needs may know it (`core.needs.Tower`)."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    @property
    def has_cls(self) -> bool:
        return self._adapter.has_cls

    def layer(self, layer: EncoderLayer) -> int:
        """The 0-based encoder layer that a need names; UserError where there is no such layer."""
        depth = len(self._adapter.encoder_layers())
        if isinstance(layer, Depth):
            return layer.index(depth, self._adapter.full_layers)
        if layer == USED:
            return self._adapter.used_layer
        if isinstance(layer, int) and -depth <= layer < depth:
            return layer % depth
        raise UserError(f"There is no encoder layer {layer!r}: this tower has layers 0 to {depth - 1}.")


def resolved(adapter: Adapter, need: EncoderNeed) -> EncoderNeed:
    """What a need comes to on this model; UserError where its encoder cannot be read."""
    if need.required:
        adapter.check_statistics()
    return need.resolved(EncoderOf(adapter))


def of_encoder(need: Need) -> tuple[EncoderNeed, ...]:
    """What must be read from the encoder for a need."""
    if isinstance(need, EncoderNeed):
        return (need,)
    return need.encoder if isinstance(need, PromptNeed) else ()


def encoder_needs(adapter: Adapter, recipes: Iterable[Recipe]) -> list[EncoderNeed]:
    """Everything that the recipes' methods read from the encoder, each once."""
    needs = (need for recipe in recipes for act in recipe.on(adapter.info).acts for need in act.needs.values())
    return list(dict.fromkeys(resolved(adapter, part) for need in needs for part in of_encoder(need)))


def layers_read(adapter: Adapter, recipe: Recipe) -> dict[str, int]:
    """The 0-based encoder layer of each signal, by `method.signal`; of several layers by `method.signal.number`."""
    tower, found = EncoderOf(adapter), {}
    for act in recipe.on(adapter.info).acts:
        for name, need in act.needs.items():
            layers = [tower.layer(layer) for part in of_encoder(need) for layer in part.layers]
            for number, layer in enumerate(layers):
                found[f"{act.method.name}.{name}" + f".{number}" * (len(layers) > 1)] = layer
    return found


WholeCall = Callable[[nn.Module, AttentionCall], AttentionCall]


class EncoderReader:
    """Notes what the needs' taps name while the tower runs, then reads the needs.

    Args:
        needs: as `resolved` on this model.
        whole: makes a call of an attention module that has a part of the heads one of all heads.
    """

    def __init__(
        self, adapter: Adapter, modality: str, needs: Iterable[EncoderNeed], whole: WholeCall | None = None
    ) -> None:
        self.adapter, self.modality, self.needs, self._whole = adapter, modality, list(needs), whole
        tower = EncoderOf(adapter)
        self._tapped = {(tap, tower.layer(layer)) for need in self.needs for tap in need.taps for layer in need.layers}
        self._attentions = adapter.encoder_attentions(modality)
        self._calls: dict[Any, list[AttentionCall]] = {}
        self._states: dict[int, list[Tensor]] = {}
        self._made: dict[Any, Any] = {}

    @contextmanager
    def noting(self) -> Iterator[None]:
        """While the tower runs."""
        states = {
            layer for tap, layer in self._tapped if tap == "states" or (tap == "rows" and self.adapter.tower_rows)
        }
        attention = sorted(layer for tap, layer in self._tapped if tap == "attention")
        with ExitStack() as stack:
            for layer in states:
                module = self.adapter.encoder_layers(self.modality)[layer]
                stack.callback(module.register_forward_hook(self._noter(layer)).remove)
            self._calls = stack.enter_context(capture([self._attentions[layer] for layer in attention]))
            yield
        if whole := self._whole:
            self._calls = {module: [whole(module, call) for call in calls] for module, calls in self._calls.items()}

    def _noter(self, layer: int) -> Callable[..., None]:
        seen = self._states[layer] = []

        def note(module: Any, args: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        return note

    def read(self, call: dict[str, Any], features: list[Tensor]) -> list[dict[EncoderNeed, Any]]:
        """The signals of each image of a call.

        Args:
            call: the arguments of `get_*_features`.
            features: [count, D] of each image.
        """
        self.call, self.features = call, features
        images = [_Image(self, number) for number in range(len(features))]
        return [{need: self._checked(need, need.read(image), image) for need in self.needs} for image in images]

    @staticmethod
    def _checked(need: EncoderNeed, value: Any, image: _Image) -> Any:
        rows = value.rows if isinstance(value, TowerRows) else value
        if not isinstance(rows, Tensor) or len(rows) != len(image.features):
            raise RuntimeError(f"{need!r} must give one row for each of the {len(image.features)} slots of an image")
        return value

    def calls(self, layer: EncoderLayer, joined: bool = False) -> list[AttentionCall]:
        """The attention calls of a layer that was noted, the CLS token first; `joined`: as if all heads were one."""
        number = EncoderOf(self.adapter).layer(layer)
        if ("attention", number) not in self._tapped:
            raise RuntimeError(f"A need reads attention of encoder layer {number} without naming it in taps and layers")
        calls = self._calls[self._attentions[number]]
        if self.adapter.cls_last:
            calls = [cls_first(call) for call in calls]
        return [joined_heads(call) for call in calls] if joined else calls

    def states(self, layer: EncoderLayer) -> list[Tensor]:
        """The outputs of a layer that was noted, the CLS token first."""
        number = EncoderOf(self.adapter).layer(layer)
        if number not in self._states:
            raise RuntimeError(f"A need reads states of encoder layer {number} without naming it in taps and layers")
        states = [rows if rows.ndim > 2 else rows[None] for rows in self._states[number]]
        return [rows.roll(1, dims=1) for rows in states] if self.adapter.cls_last else states

    def once(self, key: Any, make: Callable[[], list[Tensor]]) -> list[TowerRows]:
        """Encoder tokens' values as rows of the slots of each image, made once for all needs."""
        if key not in self._made:
            counts = [len(piece) for piece in self.features]
            self._made[key] = self.adapter.rows(self.modality, self.call, make(), counts)
        return self._made[key]


class _Image:
    """One image of a call (`core.needs.EncoderReading`)."""

    def __init__(self, reader: EncoderReader, number: int) -> None:
        self._reader, self._number = reader, number
        self._adapter = reader.adapter

    @property
    def features(self) -> Tensor:
        return self._reader.features[self._number]

    def _of(self, key: Any, make: Callable[[], list[Tensor]]) -> TowerRows:
        return self._reader.once(key, make)[self._number]

    def rows(self) -> TowerRows:
        if not self._adapter.tower_rows:
            return TowerRows(self.features, None)
        return self._of("rows", lambda: self._reader.states(USED))

    def pixels(self, normalized: bool) -> Tensor:
        made, key = self._reader._made, ("pixels", normalized)
        if key not in made:
            made[key] = self._adapter.pixel_rows(self._reader.modality, self._reader.call, normalized=normalized)
        return made[key][self._number]

    def states(self, layer: EncoderLayer) -> TowerRows:
        return self._of(("states", layer), lambda: self._reader.states(layer))

    def _heads(self, part: str, layer: EncoderLayer, joined: bool) -> TowerRows:
        def make() -> list[Tensor]:
            return [getattr(call, part).float().mean(1) for call in self._reader.calls(layer, joined)]

        rows = self._of((part, layer, joined), make)
        return rows if self._adapter.tower_rows else TowerRows(rows.rows, None)

    def queries(self, layer: EncoderLayer, joined: bool = False) -> TowerRows:
        return self._heads("query", layer, joined)

    def keys(self, layer: EncoderLayer, joined: bool = False) -> TowerRows:
        return self._heads("key", layer, joined)

    def values(self, layer: EncoderLayer, joined: bool = False) -> TowerRows:
        return self._heads("value", layer, joined)

    def cls_attention(self, layer: EncoderLayer, joined: bool = False, heads: str = "mean") -> Tensor:
        def make() -> list[Tensor]:
            calls = self._reader.calls(layer, joined)
            rows = [attention_rows(c.query[:, :, :1], c.key, c.scaling, c.visible(0, 1))[:, 0] for c in calls]
            return _over_heads(rows, calls, heads)

        return self._of(("cls", layer, joined, heads), make).rows

    def received_attention(self, layer: EncoderLayer, joined: bool = False, heads: str = "mean") -> Tensor:
        def make() -> list[Tensor]:
            calls = self._reader.calls(layer, joined)
            return _over_heads([received_attention(c.query, c.key, c.scaling, c.real) for c in calls], calls, heads)

        return self._of(("received", layer, joined, heads), make).rows

    def statistic(self, layer: EncoderLayer, of: Callable[[Any], Tensor]) -> TowerRows:
        return self._of((of, layer), lambda: [of(call) for call in self._reader.calls(layer)])

    def project(self, rows: Tensor) -> Tensor:
        return self._adapter.project(rows)


def _over_heads(means: list[Tensor], calls: list[AttentionCall], heads: str) -> list[Tensor]:
    """Means over heads as they are, or as sums."""
    if heads not in ("mean", "sum"):
        raise ValueError(f'heads={heads!r}: encoder attention is read as "mean" or "sum" over heads')
    return [mean * call.query.shape[1] if heads == "sum" else mean for mean, call in zip(means, calls, strict=True)]
