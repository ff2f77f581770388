"""Pictures written as text."""

from __future__ import annotations

import base64
import binascii
import re

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{40,}={0,2}\s*")  # the smallest picture has more characters
_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(;[\w=.+-]+)*,", re.ASCII)


def is_base64(text: str) -> bool:
    """Whether a cell holds a picture rather than its path: base64 without the dot of a file name, or a data: URL."""
    return text.startswith("data:") or bool(_BASE64.fullmatch(text))


def decode_base64(text: str) -> bytes:
    """The bytes that base64 text or a data: URL holds.

    Raises:
        ValueError: it holds none.
    """
    if head := _DATA_URL.match(text):
        if ";base64" not in head[0]:
            raise ValueError("its data: URL is not base64")
        text = text[head.end() :]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error:
        raise ValueError("it is not base64") from None
