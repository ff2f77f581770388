"""Loading weights, with an error if some are missing."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError

from vlmprune.core.errors import UserError, sentence_of


def load_whole(kind: Any, path: str, name: str, **settings: Any) -> Any:
    """`kind.from_pretrained(path)`, but with an error if the files lack weights, which transformers draws at random.

    Args:
        kind: a model class or an `AutoModelFor...` of transformers.
        path: a local folder or a hub id.
        name: the model as the user wrote it, for errors.
        settings: further arguments of `from_pretrained`.

    Raises:
        UserError: files are broken or incomplete, or hold the weights of another configuration.
        ImportError, OSError, ValueError: transformers cannot load the model for any other reason.
    """
    try:
        model, found = kind.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **settings)
    except SafetensorError as error:
        raise UserError(
            f"A weight file of {name!r} is broken ({first_sentence(error).rstrip('.')}): download it again."
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"The weight files of {name!r} lack {len(missing)} of its tensors, {missing[0]} among them: "
            "download it again."
        )
    if found["mismatched_keys"]:
        tensor, stored, wanted = min(found["mismatched_keys"])
        raise UserError(
            f"The weights of {name!r} do not fit its config.json: {tensor} is {_shape(stored)} in the file and "
            f"{_shape(wanted)} in the model."
        )
    return model


def _shape(sizes: Any) -> str:
    return " x ".join(map(str, sizes))


def first_sentence(error: Exception) -> str:
    """The first sentence of another library's error, with the error's type if its text was not written for users."""
    said = sentence_of(error)
    worded = said and isinstance(error, ImportError | OSError | ValueError | SafetensorError)
    return (said if worded else f"{type(error).__name__} {said}".strip()) + "."
