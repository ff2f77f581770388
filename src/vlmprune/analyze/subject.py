"""The model that is studied. It is loaded only where something is not there yet from an earlier command."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from vlmprune.analyze.lone import load_encoder
from vlmprune.analyze.pictures import Picture
from vlmprune.analyze.reading import Reading
from vlmprune.analyze.tower import Tower
from vlmprune.assets import embedded_names, embedded_path
from vlmprune.bench.load import Loaded, find_model, library_versions, load_model, usable_device, weights_digest
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import make_folder
from vlmprune.models import adapter_for
from vlmprune.models.weights import first_sentence

Tell = Callable[[str, int, int], None]  # of what is done, how much of it, and how much there is


class Subject:
    """A vision-language model or a lone vision encoder.

    Args:
        name: an embedded model's name, a local folder or a hub id.
        folder: where readings are kept.
        device: as `bench.load.load_model`.
        root: the folder to mark as ours before something is kept, by default `folder`.

    Attributes:
        whole: whether it is a vision-language model.

    Raises:
        UserError: there is no model of that name.
    """

    def __init__(self, name: str, folder: Path, device: str | None = None, root: Path | None = None) -> None:
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

        find_model(name)
        self.name, self._folder, self._device = name, folder, usable_device(device)
        self._root = root or folder
        local = Path(name).expanduser()
        self._path = str(embedded_path(name)) if name in embedded_names() else str(local) if local.is_dir() else name
        try:
            self._config = AutoConfig.from_pretrained(self._path)
        except Exception as error:  # a damaged file may raise anything
            raise UserError(f"transformers cannot read the config of {name!r}: {first_sentence(error)}") from error
        self.whole = type(self._config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    def begin(self) -> None:
        """Mark the folder, so that the same command may go on in it after it was interrupted."""
        make_folder(self._root)

    @cached_property
    def identity(self) -> str:
        """What tells these weights, and the libraries that run them, from others."""
        there = Path(self._path).is_dir()
        weights = (
            weights_digest(Path(self._path)) if there else getattr(self._config, "_commit_hash", None) or "unknown"
        )
        config = hashlib.sha256(self._config.to_json_string().encode()).hexdigest()[:16]
        return "|".join([str(weights), config, self._device, *(f"{k}={v}" for k, v in library_versions().items())])

    @cached_property
    def loaded(self) -> Loaded:
        """The vision-language model.

        Raises:
            UserError: it is a lone encoder, or cannot be loaded.
        """
        if not self.whole:
            raise UserError(
                f"{self.name!r} is an encoder without a language model: this study needs a vision-language model."
            )
        return load_model(self.name, self._device)

    @cached_property
    def _encoder(self) -> Callable[..., Reading]:
        if self.whole:
            return Tower(self.loaded).read
        return load_encoder(self.name, self._path, self._config, self._device).read

    @cached_property
    def full_layers(self) -> tuple[int, ...] | None:
        """Encoder layers whose attention spans the picture; None if that of all layers does."""
        return adapter_for(self.loaded.model).full_layers if self.whole else None

    @cached_property
    def used_layer(self) -> int | None:
        """The encoder layer whose output the language model gets; None without one."""
        return adapter_for(self.loaded.model).used_layer if self.whole else None

    def readings(self, pictures: Sequence[Picture], tell: Tell) -> list[Reading]:
        """What the encoder did with each picture; only what is new is encoded."""
        found = []
        for number, picture in enumerate(pictures):
            tell("encoding pictures", number, len(pictures))
            key = hashlib.sha256(f"{self.identity}|{picture.digest}".encode()).hexdigest()[:24]
            path = self._folder / f"{key}.npz"
            if not path.is_file():
                reading = self._encoder(picture.image)
                self.begin()
                reading.save(path)
            found.append(Reading.load(path))
        tell("encoding pictures", len(pictures), len(pictures))
        if len({reading.layers for reading in found}) != 1:
            raise UserError(f"{self._folder} holds readings of different models: delete it, and run the command again.")
        return found
