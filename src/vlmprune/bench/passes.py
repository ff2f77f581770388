"""What the vision tower saw of a picture: how many patches at a time, and how many rows its projector took.

A tower's cost is not a matter of visual tokens alone: tiles lose their padding behind it, frames are pooled. A
measurement watches the tower and knows (`watched`). Of recorded answers there are only token counts. For most families
these tell all; where a picture is cut into tiles of a canvas and its padding is dropped, other pictures have as many
slots, and the least elongated of them is counted, on the smallest canvas (`from_slots`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from vlmprune.core.shape import Shape


class Encoded(NamedTuple):
    """What the tower and the projector worked on.

    Attributes:
        passes: patches of each picture, tile or frame whose patches attend to one another.
        projected: rows that went through the projector.
    """

    passes: tuple[int, ...]
    projected: int


def from_slots(shape: Shape, slots: int, frames: int = 0) -> Encoded | None:
    """Of one picture or video with so many slots; None where none of the family has as many, or no count tells.

    Args:
        frames: of a video, where that is known; they are looked at where the slots do not tell them.
    """
    if not slots:
        return Encoded((), 0)
    if shape.opaque:
        return None
    if shape.pooled:
        video, picture = _pooled_video(shape, slots), _of_canvas(shape, slots)
        if frames:
            return video if video and len(video.passes) == frames else None
        return None if video and picture else video or picture
    if shape.chunk and frames:
        return _of_chunks(shape, slots, frames)
    if shape.joins and frames:
        parts = -(-frames // shape.joins)
        return None if slots % parts else of_passes(shape, (slots // parts * shape.merge,) * parts, slots)
    if shape.canvases:
        return _of_canvas(shape, slots)
    if shape.cls_slots:
        with_cls, without = divmod(slots, shape.tile + 1), divmod(slots, shape.tile)
        if without[1] and with_cls[1]:
            return None
        return of_passes(shape, (shape.tile,) * (without[0] if with_cls[1] else with_cls[0]), slots)
    whole, rest = divmod(slots, shape.tile) if shape.tile and slots > shape.tile else (0, slots)
    tiles = [shape.tile] * whole + [rest] * (rest > 0)
    return of_passes(shape, tuple(tile * shape.merge for tile in tiles), slots)


def of_passes(shape: Shape, passes: tuple[int, ...], slots: int) -> Encoded:
    """What the projector took of these passes of the tower, which made so many slots.

    Of Molmo 2 they must be a picture's.
    """
    if shape.opaque and not shape.projects_padding:
        return Encoded(passes, slots)
    if shape.chunk or (shape.pooled and slots * shape.pooled == sum(passes)):
        return Encoded(passes, slots)  # it stands behind the mean over a chunk's frames, or over patches
    with_cls = shape.cls_slots and slots == sum(passes) + len(passes)
    return Encoded(passes, sum(passes) // shape.merge + with_cls * len(passes))


def _pooled_video(shape: Shape, slots: int) -> Encoded | None:
    """Frames of a tile each, of whose patches several make a slot."""
    count, rest = divmod(slots * shape.pooled, shape.tile)
    return None if rest else Encoded((shape.tile,) * count, slots)


def _of_chunks(shape: Shape, slots: int, frames: int) -> Encoded | None:
    """Chunks of frames that see each other; the last one may have fewer."""
    chunks = -(-frames // shape.chunk)
    lengths = [min(shape.chunk, frames - shape.chunk * number) for number in range(chunks)]
    patches = slots // chunks * shape.merge
    return None if slots % chunks else Encoded(tuple(patches * length for length in lengths), slots)


def _of_canvas(shape: Shape, slots: int) -> Encoded | None:
    """The whole picture and the tiles of its canvas, or the frames of a video, each pooled to half its sides."""
    side = round(shape.tile**0.5)
    found = [
        (max(rows, cols) / min(rows, cols), down * across)
        for down, across in shape.canvases
        for rows, cols in _unpadded(down * side, across * side)
        if shape.tile + _with_newlines(shape, rows, cols) == slots
    ]
    if found:
        return of_passes(shape, (shape.tile,) * (1 + min(found)[1]), slots)
    if slots == shape.tile + 1:  # one of several pictures, which are not cut, and its newline
        return of_passes(shape, (shape.tile,), slots)
    frames, rest = divmod(slots - 1, ((side + 1) // 2) ** 2)
    return of_passes(shape, (shape.tile,) * frames, slots) if shape.most and frames and not rest else None


def _unpadded(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of patches that may be left of a canvas without its padding, which is the same on two sides."""
    yield from ((rows - 2 * margin, cols) for margin in range((rows + 1) // 2))
    yield from ((rows, cols - 2 * margin) for margin in range(1, (cols + 1) // 2))


def _with_newlines(shape: Shape, rows: int, cols: int) -> int:
    """Slots of a canvas: shrunk where there are too many, and one more at the end of each row."""
    ratio = (rows * cols / (shape.most * shape.tile)) ** 0.5 if shape.most else 0.0
    if ratio > 1.1:
        rows, cols = int(rows // ratio), int(cols // ratio)
    return rows * (cols + 1)


def tower_of(model: Any) -> nn.Module:
    """What sees a model's pictures: its encoder, or where it has none what embeds their patches (Gemma 4 unified)."""
    found = model.get_encoder(modality="image")
    return model.model.embed_vision if found is model else found  # type: ignore[no-any-return]


@contextlib.contextmanager
def watched(tower: nn.Module, patch: int) -> Iterator[list[int]]:
    """Patches of each pass of a tower while the context is open, of all samples of a batch together.

    Args:
        tower: of a model, which takes pictures, or rows of patches with their grids as Qwen's do, or pictures of a
            batch with their sizes as Pixtral's does, or patches side by side with their rows and columns as
            MiniCPM-V's, or padded rows of patches as Gemma 4's.
        patch: side of a patch in pixels.
    """
    passes: list[int] = []
    joint = hasattr(tower, "temporal_merge")  # Kimi's, where the frames of a chunk see each other

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        pictures = next(value for value in tensors if value.is_floating_point())
        grids: Any = next((value for value in tensors if value.dim() == 2 and value.shape[-1] == 3), None)
        sizes: Any = next((value for value in tensors if value.dim() == 2 and value.shape[-1] == 2), None)
        if grids is not None and joint:
            passes.extend(grids.prod(-1).tolist())
        elif grids is not None:
            passes.extend(rows * cols for frames, rows, cols in grids.tolist() for _ in range(frames))
        elif "target_sizes" in kwargs:
            passes.extend(kwargs["target_sizes"].prod(-1).tolist())
        elif pictures.dim() == 3:  # padded rows of patches
            passes.extend([pictures.shape[1]] * len(pictures))
        elif sizes is not None:  # of pictures that are filled up to one size
            passes.extend((height // patch) * (width // patch) for height, width in sizes.tolist())
        else:
            height, width = pictures.shape[-2:]
            count = pictures.shape[:-3].numel()
            passes.extend([(height // patch) * (width // patch)] * count)

    handle = tower.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
