"""`vlmprune serve --engine vllm` answers about videos: frames as JPEG, and a file that vLLM decodes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlmprune

from .conftest import Prompt, Reference, media
from .conftest import written as in_words
from .models import place_of
from .server import ask, body_of, metric, refusal, served, text_of

RECIPE = "divprune:0.25"
SERVED = ("qwen2_5_vl", "qwen3_vl")
FPS = 2.0


@pytest.fixture(scope="module", params=SERVED)
def server(
    request: Any, variables: dict[str, str], models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A model, and the address of its server."""
    model = request.param
    ours = ["--method", RECIPE, "--allow-request-keep"]
    theirs = ["--served-model-name", model, "--media-io-kwargs", f'{{"video": {{"fps": {FPS}}}}}']
    with served(str(place_of(model, models)), variables, tmp_path_factory.mktemp(model), ours, theirs) as at:
        yield model, at


@pytest.fixture(scope="module")
def films(pictures: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """A video, one that is shorter behind a picture, and both: their frames are JPEG files."""
    folder = tmp_path_factory.mktemp("films")
    scene = Image.open(pictures[0]).resize((100, 60))

    def film(count: int, side: int) -> tuple[str, ...]:
        names = tuple(str(folder / f"{side}-{number}.jpg") for number in range(count))
        for number, name in enumerate(names):
            scene.rotate(13 * number).crop((0, 0, side, side)).save(name, quality=90)
        return names

    long, short = film(8, 60), film(5, 50)
    return [
        Prompt("What happens first?", (), (long,)),
        Prompt("What color is the sign?", pictures[1:], (short,)),
        Prompt("Which one is longer?", (), (long, short)),
    ]


def asked(model: str, prompt: Prompt, **more: Any) -> dict[str, Any]:
    """A request with the pictures of a prompt and the frames of its videos."""
    body = body_of(prompt.question, [Path(name).read_bytes() for name in prompt.pictures], model=model, **more)
    films = [address(",".join(map(in_base64, names)), "jpeg") for names in prompt.videos]
    content = body["messages"][0]["content"]
    content[-1:-1] = films
    return body


def in_base64(name: str) -> str:
    return base64.b64encode(Path(name).read_bytes()).decode()


def address(data: str, kind: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": f"data:video/{kind};base64,{data}"}}


@pytest.fixture(scope="session")
def tokens_of(models: Path) -> Callable[[str, Prompt, str], dict[str, int]]:
    """What `usage.vlmprune` is to say: the figures of a session's report."""

    def found(model: str, prompt: Prompt, recipe: str) -> dict[str, int]:
        place = place_of(model, models)
        loaded = AutoModelForImageTextToText.from_pretrained(place, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(place)
        given = media(prompt, FPS if model == "qwen3_vl" else None)
        inputs = processor(text=in_words(prompt, processor), **given, return_tensors="pt")
        with torch.no_grad(), vlmprune.prune(loaded, recipe) as session:
            loaded(**inputs)
        [(before, kept)] = session.last.tokens
        return {"visual_tokens": before, "kept": kept}

    return found


def test_answers_as_transformers_does(
    server: tuple[str, str], films: list[Prompt], reference: Reference, tokens_of: Any, models: Path
) -> None:
    """The reply, its figures and the counters: of each prompt twice, as the second time it is in the caches."""
    model, at = server
    tokenizer: Any = AutoProcessor.from_pretrained(place_of(model, models)).tokenizer
    for keep in (0.25, 0.5):
        more, recipe = {} if keep == 0.25 else {"vlmprune_keep": keep}, f"divprune:{keep}"
        due = [tokenizer.decode(said, skip_special_tokens=True).strip() for said in reference(model, recipe, films)]
        figures = [tokens_of(model, prompt, recipe) for prompt in films]
        before = counters(at)
        for _ in range(2):
            replies = [ask(at, asked(model, prompt, **more)) for prompt in films]
            assert [text_of(reply) for reply in replies] == due
            assert [reply["usage"]["vlmprune"] for reply in replies] == figures
        raised = [now - then for now, then in zip(counters(at), before, strict=True)]
        assert raised == [10, *(2 * sum(one[name] for one in figures) for name in ("visual_tokens", "kept"))]
        assert len({*due}) > 1, "replies that are all the same prove nothing"


def counters(at: str) -> list[float]:
    names = ("images_total", "visual_tokens_before_total", "visual_tokens_after_total")
    return [metric(at, name) for name in names]


def test_a_file_is_decoded(
    server: tuple[str, str], films: list[Prompt], reference: Reference, models: Path, tmp_path: Path
) -> None:
    cv2 = pytest.importorskip("cv2")
    model, at = server
    frames = [np.asarray(Image.open(name)) for name in films[0].videos[0]]
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (width, height))
    for frame in frames:
        writer.write(frame[:, :, ::-1].copy())
    writer.release()
    read, names = cv2.VideoCapture(str(tmp_path / "film.mp4")), []
    for number in range(len(frames)):
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(read.read()[1][:, :, ::-1].copy()).save(names[-1])
    [due] = reference(model, RECIPE, [Prompt(films[0].question, (), (tuple(names),))])
    body = asked(model, Prompt(films[0].question, ()))
    body["messages"][0]["content"].insert(0, address(in_base64(str(tmp_path / "film.mp4")), "mp4"))
    tokenizer: Any = AutoProcessor.from_pretrained(place_of(model, models)).tokenizer
    assert text_of(ask(at, body)) == tokenizer.decode(due, skip_special_tokens=True).strip()


def test_lives_through_a_video_that_cannot_be_read(server: tuple[str, str], films: list[Prompt]) -> None:
    model, at = server
    right = asked(model, films[0])
    before = text_of(ask(at, right))
    for data, kind in ((base64.b64encode(b"this is no video").decode(), "mp4"), ("", "jpeg"), ("AAAA,AAAA", "jpeg")):
        body = asked(model, Prompt(films[0].question, ()))
        body["messages"][0]["content"].insert(0, address(data, kind))
        assert refusal(at, body)[0] in (400, 422)
    mixed = BytesIO()
    Image.open(films[0].videos[0][0]).resize((20, 20)).save(mixed, "JPEG")
    odd = [in_base64(films[0].videos[0][0]), base64.b64encode(mixed.getvalue()).decode()]
    body = asked(model, Prompt(films[0].question, ()))
    body["messages"][0]["content"].insert(0, address(",".join(odd), "jpeg"))
    assert refusal(at, body)[0] == 400, "frames of different sizes"
    assert text_of(ask(at, right)) == before
