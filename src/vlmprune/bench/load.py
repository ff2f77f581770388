"""Models by embedded name, local folder or hub id, with what a result says about them."""

from __future__ import annotations

import difflib
import os
import platform
import subprocess
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vlmprune
from vlmprune.assets import CLIP, embedded_names, embedded_path, load_embedded
from vlmprune.core.errors import Option, UserError

if TYPE_CHECKING:
    from vlmprune import Session, TextTower
    from vlmprune.core.recipe import Recipe

_WHOLE = 256 << 20  # bytes of weights up to which all of them are hashed
_PIECE = 1 << 20
_PIECES = 16
_LIBRARIES = ("torch", "transformers")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A model ready to be benchmarked.

    Attributes:
        name: as the user wrote it.
        model, processor: of transformers.
        weights: hub revision, or a digest of the weight files; where a text tower was given, its weights too.
        text_tower: for methods that compare the image with the question.
    """

    name: str
    model: Any
    processor: Any
    weights: str
    text_tower: TextTower | None = None

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def attention(self) -> str:
        return str(self.model.config._attn_implementation)

    def session(self, recipe: Recipe, positions: str | None = None, seed: int = 0) -> Session:
        """A session of `vlmprune.prune` on this model, not yet open, with all that a method may read.

        Raises:
            UserError: the model cannot be pruned so.
        """
        read: dict[str, Any] = {"text_tower": self.text_tower, "tokenizer": self.processor}
        return vlmprune.prune(self.model, recipe, positions=positions, seed=seed, **read)


def load_model(name: str, device: str | None = None, text_tower: str | None = None, dtype: str | None = None) -> Loaded:
    """Load a model and its processor.

    Args:
        name: an embedded model's name, a local folder, or a hub id such as "llava-hf/llava-1.5-7b-hf".
        device: "cpu", "cuda", ...; the GPU when there is one.
        text_tower: the CLIP model (folder or hub id) whose vision tower the model has; an embedded model has its own.
        dtype: "float32", "bfloat16" or "float16"; by default that of the weights, and float32 on a CPU.

    Raises:
        UserError: there is nothing of that name, it is not a vision-language model that transformers can load, or the
            text tower is not a CLIP model.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(Option("dtype", dtype), f" is not a type of numbers for weights: give {', '.join(DTYPES)}.")
    loaded = _load(name, device, None if dtype is None else getattr(torch, dtype))
    return loaded if text_tower is None else _with_tower(loaded, text_tower)


def _with_tower(loaded: Loaded, name: str) -> Loaded:
    tower = vlmprune.TextTower.from_pretrained(name, loaded.processor.tokenizer)
    tower.clip.to(loaded.model.device)
    weights = f"{loaded.weights.partition(',')[0]}, text tower {_digest_or_revision(name, tower.clip)}"
    return replace(loaded, weights=weights, text_tower=tower)


def _load(name: str, device: str | None, dtype: torch.dtype | None) -> Loaded:
    find_model(name)
    device = usable_device(device)
    if name in embedded_names():
        embedded: tuple[Any, Any] = load_embedded(name)
        loaded = Loaded(name, embedded[0].to(device, dtype), embedded[1], weights_digest(embedded_path(name)))
        clip = embedded_path(name) / CLIP
        return _with_tower(loaded, str(clip)) if clip.is_dir() else loaded
    folder = Path(name).expanduser()
    model, processor = _load_pretrained(str(folder) if folder.is_dir() else name, name, device, dtype)
    return Loaded(name, model, processor, _digest_or_revision(name, model))


def usable_device(name: str | None) -> str:
    """The device of that name; the GPU, when there is one, without a name.

    Raises:
        UserError: this machine, or this build of torch, has none of that name.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise UserError(Option("device", name), " is not a device: give cpu, cuda, cuda:1, ...") from None
    try:
        if kind != "meta":
            torch.empty(0, device=name)
            return name
        why = "it computes nothing"
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0].rstrip(".")
    raise UserError(Option("device", name), f" cannot be used here: {why}.")


def _digest_or_revision(name: str, model: Any) -> str:
    """What tells these weights from others: a digest of a folder, or the revision on the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return weights_digest(folder)
    return str(getattr(model.config, "_commit_hash", None) or "unknown")


def find_model(name: str) -> None:
    """Raise UserError unless there is a model of that name; loads nothing."""
    if name in embedded_names():
        embedded_path(name)
        return
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"The folder {name!r} holds no model: it has no config.json.")
        return
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        close = difflib.get_close_matches(name, embedded_names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the embedded models are {', '.join(embedded_names())}."
        raise UserError(f"There is no model {name!r}, neither as a folder nor as a hub id (owner/name): {hint}")
    _find_on_hub(name)


def _find_on_hub(name: str) -> None:
    """Ask the hub once whether it has the model; transformers would ask for half a minute before giving up."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError as error:
        raise UserError(f"The Hugging Face hub has no model {name!r}, or it is private: check the spelling.") from error
    except Exception as error:  # the errors of the hub's HTTP client, which is not ours to know
        raise UserError(
            f"There is no folder {name!r}, and the Hugging Face hub cannot be reached to look for a model of that name."
        ) from error


def _load_pretrained(path: str, name: str, device: str, dtype: torch.dtype | None) -> tuple[Any, Any]:
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoModelForImageTextToText

    from vlmprune.models.processors import load_processor
    from vlmprune.models.weights import first_sentence, load_whole

    wanted: Any = dtype or (torch.float32 if device == "cpu" else "auto")
    try:
        config = AutoConfig.from_pretrained(path)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise UserError(
                f"{name!r} is a {config.model_type} model, which transformers does not load as a vision-language "
                "model: give one that answers questions about pictures."
            )
        model = load_whole(AutoModelForImageTextToText, path, name, dtype=wanted)
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = first_sentence(error)
        raise UserError(f"transformers cannot load {name!r} as a vision-language model: {reason}") from error
    return model.eval().to(device), load_processor(path)


def weights_digest(folder: Path) -> str:
    """Hash of a folder's weights: of all bytes up to 256 MB, of evenly spread pieces and the sizes beyond that."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    whole = sum(file.stat().st_size for file in files) <= _WHOLE
    state = sha256()
    for file in files:
        size = file.stat().st_size
        state.update(f"{file.name}:{size};".encode())
        with file.open("rb") as stream:
            if whole:
                state.update(stream.read())
                continue
            for k in range(_PIECES):
                stream.seek(k * max(0, size - _PIECE) // (_PIECES - 1))
                state.update(stream.read(_PIECE))
    return state.hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a run computes."""
    return {**{name: version(name) for name in _LIBRARIES}, "vlmprune": vlmprune.__version__}


def machine(model: Any) -> dict[str, Any]:
    """Where a run is computed: device, threads, Python, and the git commit of a source checkout."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "commit": git_commit(),
    }


def _processor() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, "+" after it when files differ; None outside one."""
    here = Path(__file__).parent
    try:
        top = Path(_git(here, "rev-parse", "--show-toplevel"))
        if not (top / "src" / "vlmprune").is_dir():  # an installed package inside someone else's repository
            return None
        return _git(here, "rev-parse", "HEAD") + (
            "+" if _git(here, "status", "--porcelain", "--", str(top / "src")) else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
