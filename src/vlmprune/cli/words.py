"""What the commands share: exit codes, texts of options, and options that are lists."""

from __future__ import annotations

from typing import Any

from vlmprune.core.errors import Option, UserError

OK, UNSOUND, USAGE, INTERRUPTED = 0, 1, 2, 130
MODEL = "An embedded model's name, a local folder, or a hub id."
TEXT_TOWER = "The CLIP model (folder or hub id) whose vision tower the model has, for methods that read the question."
JUDGE = "URL of a server with OpenAI's chat completions that scores judged tasks; its key is read from OPENAI_API_KEY."
JUDGE_MODEL = "The judge's name on that server."
POSITION_IDS = "Position ids: original or compact. Default: each method's own policy."
DEVICE = "cpu, cuda, ... Default: a GPU, if there is one."
DTYPE = "float32, bfloat16 or float16. Default: the weights' own; float32 on a CPU."
FORCE = "Overwrite files that vlmprune did not write, and write into folders that hold such files."


def words_of(text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UserError(f"{text!r} names nothing: write names separated by commas.")
    return words


def pixels_of(text: str) -> Any:
    from vlmprune.bench.protocols import Pixels

    numbers = [word for word in words_of(text) if word.isdecimal()]
    if len(numbers) != 2 or text.count(",") != 1:
        raise UserError(
            Option("pixels", text), " is not a range: give the least and the most pixels, as in 200704,1003520."
        )
    return Pixels(*map(int, numbers))


def keeps_of(text: str) -> tuple[Any, ...]:
    from vlmprune.core.budget import parse_keep

    return tuple(dict.fromkeys(parse_keep(word) for word in words_of(text)))


def quiet() -> None:
    """No advice and no bars from transformers between our lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def refuse(options: dict[str, Any], why: str, other: Option) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(Option(name), f" {why} ", other, ".")


def numbers_of(name: str, text: str) -> tuple[int, ...]:
    words = words_of(text)
    for word in words:
        if not word.isdecimal():
            raise UserError(Option(name, text), f" must be whole numbers separated by commas, and {word!r} is not one.")
    return tuple(map(int, words))


def single(numbers: tuple[int, ...], *refusal: str | Option) -> int:
    if len(numbers) > 1:
        raise UserError(*refusal)
    return numbers[0]
