"""The rules for what vlmprune may write where, so that it never destroys a user's files.

vlmprune may overwrite what it wrote itself. It knows this by a mark: pictures name vlmprune as the software that made
them (EXIF), and folders hold a file `.vlmprune`. Overwriting anything else needs `force`, and no command overwrites a
file that it reads. Commands check this before they begin to work.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from vlmprune.core.errors import Option, UserError

FOLDER_MARK = ".vlmprune"
_MARK = "vlmprune"
_SOFTWARE = 0x0131  # the EXIF tag
_CLUTTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # written by file managers
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")


def check_picture(path: Path, what: str, *, reads: Iterable[Path] = (), force: bool = False) -> Path:
    """The path, if a picture may be written there.

    Args:
        what: what an error calls the picture, such as "overlay".
        reads: the files that the command reads.
        force: overwrite a file that vlmprune has not written.

    Raises:
        UserError: it has another ending, its folder is missing or read-only, or a file would be lost.
    """
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(f"The {what} {str(path)!r} must end in {', '.join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]}.")
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise UserError(f"The installed Pillow cannot write {path.suffix.lower()}: let the {what} end in .png.")
    return check_file(path, what, reads=reads, force=force or _is_our_picture(path))


def check_file(path: Path, what: str, *, reads: Iterable[Path] = (), force: bool = False) -> Path:
    """The path, if a file may be written there. An existing file is overwritten only with `force`.

    Raises:
        UserError: it is a folder, its folder is missing or read-only, or a file would be lost.
    """
    if path.is_dir():
        raise UserError(f"The {what} {str(path)!r} is a folder: give a file.")
    if not path.parent.is_dir():
        raise UserError(f"The {what} cannot be written: there is no folder {str(path.parent)!r}.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"The {what} cannot be written to {str(path)!r}: permission denied.")
    if not path.exists():
        return path
    if any(read.exists() and path.samefile(read) for read in reads):
        raise UserError(f"The {what} would overwrite {str(path)!r}, which it is made from: give another name.")
    if not force:
        raise UserError(
            f"The {what} would overwrite {str(path)!r}, which vlmprune did not write: give another name, or ",
            Option("force", True),
            ".",
        )
    return path


def check_folder(path: Path, what: str, *, force: bool = False) -> Path:
    """The path, if files may be written into that folder: it is new, empty or marked as ours, or `force` is given.

    Raises:
        UserError: it is a file, or it holds files that vlmprune did not write.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"The {what} cannot be written to {str(path)!r}: it is a file.")
    if not force and path.is_dir() and not is_our_folder(path) and not _is_empty(path):
        raise UserError(
            f"The {what} would be written among the files of {str(path)!r}, which vlmprune did not write: give "
            "another folder, or ",
            Option("force", True),
            ".",
        )
    return path


def is_our_folder(path: Path) -> bool:
    """Whether it carries our mark."""
    return (path / FOLDER_MARK).is_file()


def make_folder(path: Path) -> Path:
    """Make the folder if it does not exist, and mark it as ours."""
    path.mkdir(parents=True, exist_ok=True)
    (path / FOLDER_MARK).touch()
    return path


def write_whole(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees either what was there before or all of it.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 (mkstemp makes it private)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture with our mark; the format follows the ending.

    Raises:
        OSError: it cannot be written. An earlier picture at this path is then unchanged, unless the disk is full.
    """
    exif = Image.Exif()
    exif[_SOFTWARE] = _MARK
    out = io.BytesIO()
    image.save(out, format=Image.registered_extensions()[path.suffix.lower()], exif=exif)
    path.write_bytes(out.getvalue())


def _is_our_picture(path: Path) -> bool:
    try:
        with Image.open(path) as opened:
            return opened.getexif().get(_SOFTWARE) == _MARK
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _is_empty(path: Path) -> bool:
    return all(child.name in _CLUTTER for child in path.iterdir())
