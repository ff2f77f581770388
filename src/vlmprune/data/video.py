"""Videos: some frames of a file, chosen evenly by count or by rate, decoded by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from vlmprune.core.errors import UserError
from vlmprune.core.extras import load_package

ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".gif")
_HEAD = 1 << 20  # bytes


@dataclass(frozen=True)
class Frames:
    """Frames of a video.

    Attributes:
        pixels: [frames, height, width, 3] RGB, 0 to 255.
        indices: the number of each among all frames, from 0.
        total: how many frames there are in all.
        fps: frames a second of the file.
    """

    pixels: np.ndarray
    indices: tuple[int, ...]
    total: int
    fps: float


@dataclass(frozen=True)
class Clip:
    """A video file, of which some frames are shown.

    Attributes:
        path: the file.
        frames: how many, spread evenly from the first to the last; some are shown twice where there are fewer, so that
            all videos of a batch have as many.
        rate: frames a second instead; `frames` is then the most there may be.
    """

    path: Path
    frames: int = 8
    rate: float | None = None

    def open(self) -> Frames:
        """The chosen frames.

        Raises:
            UserError: the file cannot be read, or PyAV is not installed.
        """
        av = load_av()
        try:
            total, fps = _count(av, self.path)
            while True:
                indices = self.choose(total, fps)
                found, seen = _decode(av, self.path, indices)
                if len(found) == len(indices):
                    return Frames(np.stack(found), indices, total, fps)
                total = seen  # the file is shorter than it says
        except (OSError, ValueError) as error:  # PyAV's errors are both or one of them
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"The video {str(self.path)!r} cannot be read: {reason.rstrip('.')}.") from None

    def count(self) -> int:
        """How many frames are shown. A rate has to be looked up in the file; of one that cannot be read it is 1."""
        if self.rate is None:
            return self.frames
        try:
            return len(self.open().indices)
        except UserError:
            return 1

    def choose(self, total: int, fps: float) -> tuple[int, ...]:
        """The numbers of the frames that are shown, of `total` in a file of `fps` frames a second."""
        if total < 1:
            raise ValueError("it has no frames")
        return evenly(total, fps, self.frames, self.rate)

    def digest(self) -> bytes:
        """What tells these frames from others: how they are chosen, the size of the file and its beginning."""
        chosen = f"{self.frames} {self.rate} ".encode()
        try:
            with self.path.open("rb") as file:
                return chosen + str(self.path.stat().st_size).encode() + sha256(file.read(_HEAD)).digest()
        except OSError:
            return chosen


def evenly(total: int, fps: float, frames: int, rate: float | None) -> tuple[int, ...]:
    """The numbers of `frames` frames of `total` that are `fps` a second; or of `rate` a second, at most `frames`."""
    count = frames if rate is None else min(frames, max(1, round(total / fps * rate)))
    return tuple(np.linspace(0, total - 1, count).astype(int).tolist())


def load_av() -> Any:
    """PyAV.

    Raises:
        UserError: it is not installed.
    """
    return load_package("av", "A video")


def _count(av: Any, path: Path) -> tuple[int, float]:
    """Frames in a file and frames a second, without decoding."""
    with av.open(str(path)) as container:
        stream = _stream(container)
        total = sum(packet.size > 0 for packet in container.demux(stream))
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise ValueError("it does not say how many frames a second it has")
        return total, float(rate)


def _decode(av: Any, path: Path, indices: tuple[int, ...]) -> tuple[list[np.ndarray], int]:
    """The pixels of the frames with these numbers, those that there are, and how many were decoded."""
    found: list[np.ndarray] = []
    seen = 0
    with av.open(str(path)) as container:
        for number, frame in enumerate(_frames(container)):
            seen = number + 1
            if times := indices.count(number):
                found += [frame.to_ndarray(format="rgb24")] * times
            if number >= indices[-1]:
                break
    return found, seen


def _frames(container: Any) -> Iterator[Any]:
    stream = _stream(container)
    stream.thread_type = "AUTO"
    return container.decode(stream)


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("it has no pictures, only sound")
    return container.streams.video[0]
