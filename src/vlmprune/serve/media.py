"""The pictures and videos of a request. Nothing that a request carries is opened as a file."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from PIL import Image
from transformers.image_utils import load_image

from vlmprune.core.errors import UserError, sentence_of

IMAGES, VIDEOS = {"image_url", "input_image"}, {"video_url"}
TEXTS = {"text", "input_text", "output_text"}
REMOTE = ("http://", "https://")
TIMEOUT = 20.0  # seconds for each step of fetching a picture

Part = dict[str, Any]


async def open_media(body: dict[str, Any]) -> None:
    """Put the picture in the place of each image's address, in the body of either interface.

    Raises:
        UserError: an address is of another kind than http, https and data, or there is no picture behind it.
    """
    for part in [*_media(body.get("messages")), *_media(body.get("input"))]:
        name = "video_url" if part["type"] in VIDEOS else "image_url"
        given = part.get(name)
        address = given.get("url") if isinstance(given, dict) else given
        if part["type"] in VIDEOS:
            if not isinstance(address, str) or not address.startswith(REMOTE):
                raise UserError("A video must be given as an address that begins with http:// or https://.")
        else:
            part[name] = {"url": await asyncio.to_thread(open_picture, address)}


def open_picture(address: object) -> Image.Image:
    """The RGB picture behind an http, https or data address."""
    if not isinstance(address, str) or not address.startswith((*REMOTE, "data:image/")):
        raise UserError(
            "An image must be given as an address that begins with http://, https:// or data:image/ (base64): this "
            "server opens no files."
        )
    try:
        if address.startswith(REMOTE):
            return load_image(address, timeout=TIMEOUT)
        return load_image(Image.open(BytesIO(_decoded(address))))
    except UserError:
        raise
    except Exception as error:  # of Pillow on a damaged file, which may be any, and of the HTTP client
        shown = address if address.startswith(REMOTE) else "a data address"
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f": {sentence_of(error)}"
        raise UserError(f"There is no picture that can be read in {shown[:200]}{reason}.") from error


def _decoded(address: str) -> bytes:
    kind, comma, content = address.partition(",")
    if not comma or not kind.endswith(";base64"):
        raise UserError("An image in the request itself must be written data:image/png;base64,... or the like.")
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"An image in the request is not base64: {sentence_of(error)}.") from error


def _media(node: object) -> Iterator[Part]:
    """The parts with an image or a video, in order, of messages of either interface."""
    for item in _listed(node):
        if not isinstance(item, dict):
            continue
        kind = item.get("type")
        if isinstance(kind, str) and kind in IMAGES | VIDEOS:
            yield item
        else:
            yield from _media(item.get("content"))
            yield from _media(item.get("output"))  # of a tool


def _listed(node: object) -> list[Any]:
    return node if isinstance(node, list) else []


def parts_of(message: dict[str, Any]) -> list[Part]:
    """What a message says, part by part.

    Raises:
        UserError: some of it would be left out by transformers' server without a word.
    """
    content = message.get("content") or []
    parts: list[Part] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise UserError("The content of a message must be text or a list of parts.")
    for part in parts:
        if part.get("type") not in TEXTS | IMAGES | VIDEOS:
            raise UserError(f"This server takes text, images and videos, not {str(part.get('type'))[:40]!r}.")
    if message.get("tool_calls") and count_media(parts):
        raise UserError("A message that calls tools can have no images of its own.")
    return parts


def count_media(parts: list[Part]) -> int:
    """How many images and videos there are."""
    return sum(part["type"] in IMAGES | VIDEOS for part in parts)


def last_question(messages: object) -> str | None:
    """What the last message of the user says, None where it says nothing that can be read.

    For a server that itself says what is wrong with messages.
    """
    given = [one for one in _listed(messages) if isinstance(one, dict) and one.get("role") == "user"]
    content = given[-1].get("content") if given else None
    if isinstance(content, str):
        return content.strip() or None
    return (
        text_of([part for part in _listed(content) if isinstance(part, dict) and isinstance(part.get("type"), str)])
        or None
    )


def count_latest(messages: object) -> int:
    """How many images the last message has that has any; 1 where none has."""
    counts = [sum(1 for _ in _media([message])) for message in _listed(messages)]
    return next((count for count in reversed(counts) if count), 1)


def text_of(parts: list[Part]) -> str:
    """The words, without the images."""
    return " ".join(str(part.get("text", "")) for part in parts if part["type"] in TEXTS).strip()
