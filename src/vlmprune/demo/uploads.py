"""What visitors upload: read into memory, and deleted."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vlmprune.ask.media import open_image
from vlmprune.core.errors import UserError

MOST_BYTES = 20 << 20


def take_upload(path: Path, folder: Path) -> Image.Image:
    """The picture in an uploaded file, which is deleted, whatever is in it.

    Args:
        folder: that holds all uploads. Nothing outside of it is read or deleted, whatever a request says.

    Raises:
        UserError: the file is no picture that can be read.
    """
    if folder.resolve() not in path.resolve().parents:
        raise UserError("That is not a file that was uploaded here.")
    try:
        return open_image(path, path.name)
    finally:
        path.unlink(missing_ok=True)
