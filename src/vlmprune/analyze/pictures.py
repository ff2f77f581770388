"""The pictures that a study looks at: a folder, the photographs of the package, generated scenes, or COCO."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from vlmprune.analyze.coco import coco_masks
from vlmprune.ask.media import open_image, pictures_of
from vlmprune.assets import world
from vlmprune.core.errors import Option, UserError

LIMIT = 16  # pictures, where nothing else is said
_SCENES_SEED = 20260
_PHOTOS = Path(world.__file__).parent / "photos"


@dataclass(frozen=True)
class Picture:
    """A picture, and where its objects are, if that is known.

    Attributes:
        name: for titles and tables.
        image: RGB.
        mask: [height, width] True where an object is; None where nobody says it.
    """

    name: str
    image: Image.Image
    mask: np.ndarray | None = None

    @cached_property
    def digest(self) -> str:
        """Of the pixels."""
        return hashlib.sha256(f"{self.image.size}".encode() + self.image.tobytes()).hexdigest()


def scenes(limit: int) -> list[Picture]:
    """Generated scenes, in which the masks of all shapes, digits and letters are exact."""
    found = []
    for number in range(limit):
        scene = world.draw_scene(np.random.default_rng([_SCENES_SEED, number]), photos="held_out")
        found.append(Picture(f"scene {number + 1}", Image.fromarray(scene.image), scene.masks > 0))
    return found


def photos(limit: int) -> list[Picture]:
    """The photographs that come with the package, first those that no embedded model was trained on."""
    paths = [path for part in ("held_out", "train") for path in sorted((_PHOTOS / part).glob("*.jpg"))]
    return [Picture(path.stem, open_image(path)) for path in paths[:limit]]


def in_folder(folder: Path, limit: int) -> list[Picture]:
    """Pictures of a folder, in the order of their names.

    Raises:
        UserError: there is no such folder, it holds no picture, or one cannot be read.
    """
    return [Picture(path.name, open_image(path)) for path in pictures_of(folder)[:limit]]


def of_coco(annotations: Path, folder: Path, limit: int) -> list[Picture]:
    """Pictures of a folder whose objects a COCO annotation file outlines, in the order of the file.

    Raises:
        UserError: the file cannot be read, or none of its pictures with objects is in the folder.
    """
    if not folder.is_dir():
        raise UserError(Option("images", str(folder)), " is not a folder: give the one with COCO's pictures.")
    found: list[Picture] = []
    for name, mask in coco_masks(annotations):
        if len(found) == limit:
            break
        if not (folder / name).is_file():
            continue
        image = open_image(folder / name)
        if mask.shape != image.size[::-1]:
            raise UserError(
                f"{name} has {image.width}x{image.height} pixels, and {annotations.name} says "
                f"{mask.shape[1]}x{mask.shape[0]}: the pictures are not those that were annotated."
            )
        found.append(Picture(name, image, mask))
    if not found:
        raise UserError(
            f"No picture in {str(folder)!r} has objects in {annotations.name}: give with ",
            Option("images"),
            " the folder that the file is about.",
        )
    return found


def choose(images: Path | None, own: bool, coco: Path | None, limit: int) -> Sequence[Picture]:
    """The pictures that the user asked for; scenes where nothing was asked.

    Args:
        own: the package's photographs.
        coco: an annotation file for `images`.
        limit: how many at most.

    Raises:
        UserError: the options contradict each other, or the pictures cannot be read.
    """
    if limit < 1:
        raise UserError(Option("limit", limit), " must be at least 1.")
    if own and images is not None:
        raise UserError(
            Option("photos", True), " and ", Option("images", str(images)), " both name pictures: give one."
        )
    if coco is not None:
        if images is None:
            raise UserError(Option("coco", str(coco)), " needs its pictures: add ", Option("images", "DIR"), ".")
        return of_coco(coco, images, limit)
    if own:
        return photos(limit)
    return scenes(limit) if images is None else in_folder(images, limit)
