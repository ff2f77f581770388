"""What a question is about: a picture, or frames of a video, an animated picture, or a folder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlmprune.core.errors import Option, UserError
from vlmprune.data.video import ENDINGS, Clip, Frames, evenly

FRAMES = 8
_MOST = 768  # what Qwen's processors take at most
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def open_media(path: Path, frames: int | None = None, fps: float | None = None) -> Image.Image | Frames:
    """A picture, or some frames, spread evenly, of what moves.

    Args:
        path: a file; or a folder of pictures, the frames of a video one second apart, in the order of their names with
            numbers counted (frame2 before frame10).
        frames: how many; `FRAMES` where nothing is said. With `fps` the most there may be.
        fps: how many a second instead.

    Raises:
        UserError: there is no such thing, it cannot be read, or frames are asked for of a picture.
    """
    for name, number in (("frames", frames), ("fps", fps)):
        if number is not None and number <= 0:
            raise UserError(Option(name, number), " must be above 0.")
    if path.is_dir():
        return _folder(path, frames, fps)
    if path.suffix.lower() in ENDINGS and not _stands(path):
        if not path.exists():
            raise UserError(f"There is no video {str(path)!r}.")
        return Clip(path, frames or (FRAMES if fps is None else _MOST), fps).open()
    for name, number in (("frames", frames), ("fps", fps)):
        if number is not None:
            raise UserError(Option(name, number), f" is for videos, and {str(path)!r} is a picture.")
    return open_image(path)


def _stands(path: Path) -> bool:
    """Whether a GIF is one picture; an unreadable one is left to what reads it."""
    if path.suffix.lower() != ".gif":
        return False
    try:
        with Image.open(path) as opened:
            return getattr(opened, "n_frames", 1) == 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _folder(path: Path, frames: int | None, fps: float | None) -> Frames:
    found = pictures_in(path)
    if not found:
        raise UserError(f"The folder {str(path)!r} holds no frames: put pictures ({', '.join(_PICTURES)}) into it.")
    indices = evenly(len(found), 1.0, frames or (FRAMES if fps is None else _MOST), fps)
    pictures = [open_image(found[index]) for index in indices]
    if odd := next((k for k, picture in enumerate(pictures) if picture.size != pictures[0].size), None):
        raise UserError(
            f"The frames in {str(path)!r} are not of one size, as a video's are: {found[indices[odd]].name} has "
            f"{pictures[odd].width}x{pictures[odd].height} pixels, and {found[indices[0]].name} "
            f"{pictures[0].width}x{pictures[0].height}. To ask about each picture by itself, add ",
            Option("each", True),
            ".",
        )
    return Frames(np.stack([np.asarray(picture) for picture in pictures]), indices, len(found), 1.0)


def pictures_in(path: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, with numbers counted (frame2 before frame10)."""
    return sorted((one for one in path.iterdir() if one.suffix.lower() in _PICTURES), key=_counted)


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of the folder that --images names, in the same order.

    Raises:
        UserError: it is not a folder, or holds none.
    """
    if not folder.is_dir():
        raise UserError(Option("images", str(folder)), " is not a folder: give the folder that holds your pictures.")
    if not (found := pictures_in(folder)):
        raise UserError(Option("images", str(folder)), " holds no pictures: give a folder with PNG or JPEG files.")
    return found


def _counted(path: Path) -> list[tuple[int, str]]:
    """A name as a key that counts its numbers."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def open_image(path: Path, name: str | None = None) -> Image.Image:
    """The picture as RGB, upright, transparent parts on white.

    Args:
        name: what errors call it; by default its path.

    Raises:
        UserError: there is no such file, or it is not a picture that can be read to its end.
    """
    name = name or str(path)
    if not path.exists():
        raise UserError(f"There is no picture {name!r}.")
    if path.is_dir():
        raise UserError(f"{name!r} is a folder, not a picture.")
    try:
        with Image.open(path) as opened:
            opened.load()
            return _as_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise UserError(f"{name!r} is not a picture in a format that Pillow reads.") from None
    except Image.DecompressionBombError:
        raise UserError(f"The picture {name!r} has too many pixels to be opened safely.") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise UserError(f"The picture {name!r} cannot be read: {error}.") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits per pixel and more: `convert` would clip instead of scaling
        values = np.asarray(image, np.float32)
        scale = 255 / 65535 if image.mode.startswith("I") and values.max() > 255 else 1.0
        return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        solid = Image.new("RGBA", image.size, "white")
        solid.alpha_composite(image.convert("RGBA"))
        return solid.convert("RGB")
    return image.convert("RGB")
