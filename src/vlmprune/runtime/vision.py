"""The vision side: run the tower once, read what the methods declared, carry it to the text model.

`get_image_features` (and `get_video_features`) is wrapped on the instance. The record of a call rides on the output
object: `generate` encodes before the prefill and hands that object on, so a record can never meet another prompt.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.budget import ByFrame, Keep, Keeps, resolve_keep
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method, PixelMethod
from vlmprune.core.needs import EncoderNeed
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.roles import MergesInside, changes_encoding, merges_inside
from vlmprune.core.view import Grid, TowerRows, Whole
from vlmprune.models.base import Adapter, Slots
from vlmprune.models.patches import PatchAdapter
from vlmprune.runtime.attributes import Attachments
from vlmprune.runtime.encoder_merging import EncoderMerging
from vlmprune.runtime.encoder_reading import EncoderReader, WholeCall, encoder_needs
from vlmprune.runtime.repeated import pieces_of
from vlmprune.scores import computed_by


@dataclass
class ImageTokens:
    """The visual tokens of one image (or, until the prompt says what belongs together, of one piece of it).

    Attributes:
        features: [m, D] projected features; m < count after a pixel method.
        slots: [m] the slot each token stands at.
        places: where its `count` placeholder slots lie.
        adapter: of the model as the call that encoded them saw it, by which their signals are named.
        signals: what needs (as they are resolved on this model) read of the encoder, as rows of the m tokens.
        made: whether the tokens were made by merging inside the encoder, so that no statistic is theirs.
        members: [count] then, the token (0..m-1) that each slot's patch was merged into.
        small: where the picture was resized, the grid that it was resized to.
        keep: its own budget, where one of several told how it was resized.
        video: whether it is a video.
    """

    features: Tensor
    slots: Tensor
    places: Slots
    adapter: Adapter
    signals: dict[EncoderNeed, Any] = field(default_factory=dict)
    made: bool = False
    keep: Keep | ByFrame | None = None
    video: bool = False
    members: Tensor | None = None
    small: Grid | None = None

    @property
    def count(self) -> int:
        return len(self.places.cells)

    @property
    def grid(self) -> Grid | None:
        return self.places.grid

    def cells(self, slots: Tensor) -> Tensor:
        """The cells of these slots, -1 for slot -1."""
        return self.places.cells[slots.clamp(min=0)].masked_fill(slots < 0, -1)

    def to(self, device: torch.device) -> ImageTokens:
        """The same tokens on another device: the text model's, when a model is spread over several."""
        if self.features.device == device:
            return self
        places = replace(self.places, cells=self.places.cells.to(device))
        signals = {key: _moved(value, device) for key, value in self.signals.items()}
        features, slots = self.features.to(device), self.slots.to(device)
        return replace(self, features=features, slots=slots, places=places, signals=signals)


def _moved(signal: Any, device: torch.device) -> Any:
    if not isinstance(signal, TowerRows):
        return signal.to(device)
    return TowerRows(signal.rows.to(device), None if signal.cls is None else signal.cls.to(device))


def joined(pieces: Sequence[ImageTokens]) -> ImageTokens:
    """Pieces that make one image: tile after tile."""
    if len(pieces) == 1:
        return pieces[0]
    slots, cells, before, frames = [], [], 0, 0
    for piece in pieces:
        assert piece.grid is not None
        slots.append(piece.slots + before)
        own = piece.places.cells
        cells.append(torch.where(own >= 0, own + frames * piece.grid.rows * piece.grid.cols, -1))
        before, frames = before + piece.count, frames + piece.grid.frames
    number = range(len(pieces))[pieces[0].adapter.whole_tile]  # of the whole image, small
    tile, start = pieces[number], sum(piece.count for piece in pieces[:number])
    assert tile.grid is not None
    small = torch.full((before,), -1).to(tile.places.cells)
    small[start : start + tile.count] = tile.places.cells
    thumbnail = Whole("thumbnail", tile.grid, small)
    whole = Slots(tile.grid._replace(frames=frames), torch.cat(cells), (thumbnail,))
    signals = {key: _joined_signal([piece.signals[key] for piece in pieces]) for key in pieces[0].signals}
    features = torch.cat([piece.features for piece in pieces])
    return ImageTokens(features, torch.cat(slots), whole, tile.adapter, signals, video=tile.video)


def _joined_signal(values: list[Any]) -> Any:
    if not isinstance(values[0], TowerRows):
        return torch.cat(values)
    cls = None if values[0].cls is None else torch.cat([value.cls for value in values])
    return TowerRows(torch.cat([value.rows for value in values]), cls)


@dataclass
class VisionRecord:
    images: list[ImageTokens]
    shared: bool = False  # encoded by encode_images, for several methods
    seconds: float = 0.0
    scores: set[str] = field(default_factory=set)  # what computed its attention statistics
    pieces: list[Tensor] | None = None  # features of each image as the model is handed them, if it is handed a list


def own_encoding(recipe: Recipe) -> Stage | None:
    """The first stage, if it changes what the encoder gets or does: images must then be encoded for it alone."""
    first = recipe.stages[0] if recipe.stages else None
    return first if first is not None and changes_encoding(first.method) else None


class VisionWrapper:
    """Stands before one `get_*_features` while a session or `encode_images` is open.

    Args:
        recipes: what will be run on the images; UserError where their methods cannot read this encoder.
        scores: how attention statistics are computed (`scores.computed_by`).
        whole: see `EncoderReader`.
    """

    def __init__(
        self,
        adapter: Adapter,
        modality: str,
        recipes: Sequence[Recipe],
        stage: Stage | None,
        seen: Callable[[str, VisionRecord], None],
        scores: str = "auto",
        whole: WholeCall | None = None,
    ) -> None:
        self.scores, self.whole = scores, whole
        self.adapter, self.modality, self.recipes, self.stage, self.seen = adapter, modality, recipes, stage, seen
        self.needs = encoder_needs(adapter, recipes)
        self.name = adapter.feature_functions[modality]
        self.original = getattr(adapter.inner, self.name)

    def install(self, attached: Attachments) -> None:
        # generate inspects the signature to decide what to pre-encode, hence functools.wraps
        @functools.wraps(self.original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(self.original).bind(*args, **kwargs).arguments
            call = {**{name: value for name, value in bound.items() if name != "kwargs"}, **bound.get("kwargs", {})}
            return self.run(current_names(self.adapter, call))

        attached.put(self.adapter.inner, self.name, wrapper)

    def run(self, call: dict[str, Any]) -> Any:
        """`get_*_features` of these arguments; the record is put on its output as `vlmprune_record`.

        One thread at a time: merging inside the encoder changes its layers while it runs.
        """
        with _ENCODING:
            if self.running:  # get_video_features of some families calls get_image_features
                return self._encode(call)
            called = copy.copy(self)
            called.adapter = self.adapter.called_with(self.name, call)
            if called.adapter is not self.adapter:
                called.needs = encoder_needs(called.adapter, self.recipes)
            return called._encoded(call)

    def _encoded(self, call: dict[str, Any]) -> Any:
        """`run`, with the adapter as this call sees the model."""
        if self.stage is not None and isinstance(self.stage.method, MergesInside):
            return self._merged(call, self.stage, self.stage.method)
        budgets = self._budgets(call)
        whole, used = self._resized(call, budgets) if self.stage is not None else (None, call)
        reader = EncoderReader(self.adapter, self.modality, self.needs, self.whole)
        try:
            _RUNNING.add(id(self.adapter.inner))
            with reader.noting():
                output = self._encode({**used, "return_dict": True})
        finally:
            _RUNNING.discard(id(self.adapter.inner))
        start = time.perf_counter()
        features = self.adapter.features(self.modality, used, getattr(output, self.adapter.features_in, None))
        places = self.adapter.slots(self.modality, used, [len(piece) for piece in features])
        record = VisionRecord([_tokens(f, p, self.adapter) for f, p in zip(features, places, strict=True)])
        for image in record.images:
            image.video = self.modality == "video"
        for image, keep in zip(record.images, budgets or (), strict=bool(budgets)):
            image.keep = keep
        with computed_by(self.scores) as record.scores:
            read = reader.read(used, features)
        for image, signals in zip(record.images, read, strict=True):
            image.signals = signals
        if whole is not None:
            _spread(record, whole, output)
        record.seconds = time.perf_counter() - start
        record.pieces = pieces_of(output, [image.count for image in record.images])
        output["vlmprune_record"] = record  # a key, not only an attribute: accelerate rebuilds outputs key by key
        self.seen(self.modality, record)
        return output

    def _encode(self, call: dict[str, Any]) -> Any:
        """The model's own function, by the names that this version of it knows."""
        stated = inspect.signature(self.original).parameters
        older = {new: old for old, new in self.adapter.renamed.items() if old in stated and new not in stated}
        return self.original(**{older.get(name, name): value for name, value in call.items()})

    @property
    def running(self) -> bool:
        return id(self.adapter.inner) in _RUNNING

    def _merged(self, call: dict[str, Any], stage: Stage, method: MergesInside) -> Any:
        """`get_*_features` with tokens merged inside the encoder."""
        places, adapter = self.adapter.slots(self.modality, call), self.adapter
        if not all(place.plain for place in places):
            raise _puts_together(adapter, stage.method)
        count = len(places[0].cells)
        budget = stage.keep.different[0] if isinstance(stage.keep, Keeps) else stage.keep  # one for all
        keep = acts_of(stage.method, budget, adapter.info)[0].budget(count, count)
        if keep >= count:
            plain = copy.copy(self)
            plain.stage = None
            return plain._encoded(call)
        layers = adapter.encoder_layers(self.modality)[: adapter.used_layer + 1]
        with EncoderMerging(method, layers, count, keep, adapter.has_cls, adapter.family) as merging:
            output = self._encode({**call, "return_dict": True})
        record = VisionRecord([])
        features = adapter.features(self.modality, call, output.pooler_output)
        for rows, place, anchors, members in zip(features, places, merging.anchors(), merging.members(), strict=True):
            order = anchors.argsort() if method.restores_order else torch.arange(keep, device=rows.device)
            into = order.argsort()[members]
            own = replace(place, cells=place.cells.to(rows.device))
            video = self.modality == "video"
            made = ImageTokens(rows[order], anchors[order], own, adapter, made=True, video=video, members=into)
            record.images.append(made)
        output.pooler_output = _spread_rows(record, output.pooler_output, [image.features for image in record.images])
        record.pieces = pieces_of(output, [image.count for image in record.images])
        output["vlmprune_record"] = record
        self.seen(self.modality, record)
        return output

    def _budgets(self, call: dict[str, Any]) -> list[Keep | ByFrame] | None:
        """Of each picture, where they differ and the pictures are resized by them."""
        if self.stage is None or not isinstance(self.stage.keep, Keeps):
            return None
        return self.stage.keep.in_a_row(len(self.adapter.slots(self.modality, call)))

    def _resized(
        self, call: dict[str, Any], budgets: list[Keep | ByFrame] | None
    ) -> tuple[list[Slots] | None, dict[str, Any]]:
        """The images' own slots and the arguments for smaller ones; None and `call` where the budget is every token."""
        assert self.stage is not None and isinstance(self.stage.method, PixelMethod)
        places = self.adapter.slots(self.modality, call)
        if not all(place.plain for place in places):
            raise UserError(
                f"{self.stage.method.name} needs a model whose slots form a grid: this one has slots outside it."
            )
        method, keep = self.stage.method, self.stage.keep
        keeps = [keep] * len(places) if not isinstance(keep, Keeps) else budgets or []
        smaller = [self._smaller(p.grid, method, own) for p, own in zip(places, keeps, strict=True) if p.grid]
        if smaller == [place.grid for place in places]:
            return None, call
        return places, self.adapter.resize(self.modality, call, smaller)

    @staticmethod
    def _smaller(grid: Grid, method: PixelMethod, keep: Keep | ByFrame) -> Grid:
        assert not isinstance(keep, ByFrame)  # `core.framed` has refused it
        budget = resolve_keep(keep, grid.size)
        return grid if budget >= grid.size else method.resize(grid, budget)


_ENCODING = threading.RLock()
_RUNNING: set[int] = set()  # id of every multimodal model that is encoding


def current_names(adapter: Adapter, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs under the names that the model gives them now; an older name's nothing does not hide what is there."""
    if not any(old in inputs for old in adapter.renamed):
        return dict(inputs)
    found = {name: value for name, value in inputs.items() if name not in adapter.renamed}
    older = {name: inputs[old] for old, name in adapter.renamed.items() if inputs.get(old) is not None}
    return {**found, **older}


def _spread(record: VisionRecord, places: Sequence[Slots], output: Any) -> None:
    """Lay the smaller images' tokens over their own grids.

    The output gets the full number of rows, as the prompt has placeholders for all: a token's features at the slot
    where it stands, zeros elsewhere.
    """
    for image, place in zip(record.images, places, strict=True):
        assert image.grid is not None and place.grid is not None
        image.slots, image.small = cell_slots(image.grid, place.grid).to(image.features.device), image.grid
        image.places = place
    output.pooler_output = _spread_rows(record, output.pooler_output, output.pooler_output)
    if getattr(output, "deepstack_features", None) is not None:
        output.deepstack_features = [_spread_rows(record, level, level) for level in output.deepstack_features]


def _spread_rows(record: VisionRecord, values: Any, rows_of: Iterable[Tensor]) -> Any:
    """`rows_of` each image at its slots, in the container that `values` are in."""
    padded = []
    for image, rows in zip(record.images, rows_of, strict=True):
        full = rows.new_zeros(image.count, rows.shape[-1])
        full[image.slots] = rows
        padded.append(full)
    return torch.stack(padded) if isinstance(values, Tensor) else padded


def cell_slots(small: Grid, grid: Grid) -> Tensor:
    """For each cell of the smaller grid, the slot of `grid` under its centre. LongTensor [small.size]."""
    rows = ((torch.arange(small.rows) + 0.5) * grid.rows / small.rows).long()
    cols = ((torch.arange(small.cols) + 0.5) * grid.cols / small.cols).long()
    frames = torch.arange(grid.frames) * grid.rows * grid.cols
    return (frames[:, None, None] + rows[:, None] * grid.cols + cols).flatten()


def _tokens(features: Tensor, places: Slots, adapter: Adapter) -> ImageTokens:
    device = features.device
    places = Slots(places.grid, places.cells.to(device), places.wholes)
    return ImageTokens(features, torch.arange(features.shape[0], device=device), places, adapter)


def check_merges_inside(adapter: Adapter, recipe: Recipe) -> None:
    """Raise UserError where a method merges inside an encoder whose patches do not stand for one slot each."""
    for stage in recipe.stages:
        if merges_inside(stage.method) and not (isinstance(adapter, PatchAdapter) and adapter.patches_a_side == 1):
            raise _puts_together(adapter, stage.method)


def _puts_together(adapter: Adapter, method: Method) -> UserError:
    return UserError(
        f"{method.name}(inside=True) needs an encoder with one slot for each patch, and {adapter.family} puts patches "
        "or tiles together behind it."
    )
