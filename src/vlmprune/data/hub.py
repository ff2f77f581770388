"""Rows of a data set on the Hugging Face hub, as they stream."""

from __future__ import annotations

from collections.abc import Iterator

from vlmprune.core.errors import UserError
from vlmprune.data.rows import FILE, LINE, Row
from vlmprune.data.source import Hub


def hub_rows(hub: Hub) -> Iterator[Row]:
    """Rows with their pictures still encoded.

    Raises:
        UserError: the data set cannot be opened.
    """
    from datasets import Image, load_dataset

    try:
        rows = load_dataset(hub.id, hub.config, split=hub.split, streaming=True)
        for name, feature in (rows.features or {}).items():
            if isinstance(feature, Image):
                rows = rows.cast_column(name, Image(decode=False))
    except Exception as error:  # the errors of the hub's HTTP client, which is not ours to know
        raise UserError(f"The data set {hub.id!r} cannot be read from the Hugging Face hub: {error}") from error
    for number, row in enumerate(rows, 1):
        yield {FILE: hub.id, LINE: number, **row}
