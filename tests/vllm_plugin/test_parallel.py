"""Two engines behind one address share requests out, each with its own budget where the server allows that."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vlmprune.assets import load_embedded

from .conftest import Prompt, Reference
from .server import ask, body_of, compared, events_of, metric, refusal, served, text_of

METHOD = "divprune"
WHOLE = 196  # tokens of an image
KEEPS = {None: 0.25, 0.5: 0.5, 20: 20, 1.0: 1.0}  # what a request says, and what that comes to


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def server(variables: dict[str, str], folder: Path) -> Iterator[str]:
    ours = ["--method", METHOD, "--keep", "0.25", "--allow-request-keep", "--canary", "1"]
    theirs = ["--data-parallel-size", "2", "--max-num-seqs", "4"]
    with served("llava", variables, folder, ours, theirs) as at:
        yield at


def test_engines_answer_as_transformers_does(
    server: str, prompts: list[Prompt], reference: Reference, folder: Path
) -> None:
    """Figures and comparisons with the unpruned model are those of both engines, and of the server's two processes."""
    decode: Any = load_embedded("llava")[1].tokenizer

    def texts(keep: float) -> list[str]:
        found = reference("llava", f"{METHOD}:{keep}")[:2]
        return [decode.decode(tokens, skip_special_tokens=True).strip() for tokens in found]

    asked, due, kept, unpruned = [], [], 0, texts(1.0) * len(KEEPS)
    for said, keep in KEEPS.items():
        more = {} if said is None else {"vlmprune_keep": said}
        asked += [body_of(one.question, [Path(one.pictures[0]).read_bytes()], **more) for one in prompts[:2]]
        due += texts(keep)
        kept += 2 * (keep if isinstance(keep, int) else round(keep * WHOLE))
    with ThreadPoolExecutor(len(asked)) as clients:
        replies = [*clients.map(lambda body: ask(server, body), asked)]
    assert [text_of(reply) for reply in replies] == due
    assert len({reply["usage"]["prompt_tokens"] for reply in replies}) >= len(KEEPS)
    for engine in ("0", "1"):
        assert metric(server, "request_success_total", engine=engine) > 0, "one engine had nothing to do"
    found = compared(server, len(asked))
    apart = sum(ours != theirs for ours, theirs in zip(due, unpruned, strict=True))
    assert found == {"total": len(asked), "disagreements_total": apart, "failures_total": 0, "skipped_total": 0}
    assert 0 < apart < len(asked), "these pictures prove nothing"
    assert (folder / "log.txt").read_text().count("they differ from character") == apart
    assert metric(server, "images_total") == len(asked), "those of the canary are not counted"
    assert metric(server, "visual_tokens_before_total") == len(asked) * WHOLE
    assert metric(server, "visual_tokens_after_total") == kept
    assert metric(server, "selection_seconds_total") > 0


def test_a_sample_and_a_stream_are_compared_greedily(server: str, prompts: list[Prompt]) -> None:
    """Of the unpruned model with itself, which differs from itself by chance alone."""
    body = body_of(prompts[0].question, [Path(prompts[0].pictures[0]).read_bytes()], vlmprune_keep=1.0)
    before = compared(server, 0)
    ask(server, {**body, "temperature": 1.5, "seed": 1, "n": 2})
    events_of(server, body)
    assert compared(server, int(before["total"]) + 2) == {**before, "total": before["total"] + 2}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too much": ({"vlmprune_keep": 2.0}, "vlmprune_keep must be a share above 0 and at most 1"),
    "options of a processor": ({"mm_processor_kwargs": {"size": 1}}, "takes no mm_processor_kwargs"),
    "its budget in there": ({"mm_processor_kwargs": {"vlmprune_keep": "0.5"}}, "takes no mm_processor_kwargs"),
    "options of media": ({"media_io_kwargs": {"image": {}}}, "takes no media_io_kwargs"),
    "a question": ({"vlmprune_query": "a car"}, "takes no vlmprune_query"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_requests_set_nothing_else(name: str, server: str, prompts: list[Prompt]) -> None:
    more, sentence = REFUSED[name]
    status, message = refusal(server, body_of("Hello", [], **more))
    assert status == 400 and sentence in message
