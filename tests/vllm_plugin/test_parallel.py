"""Two engines behind one address share requests out, each with its own budget where the server allows that."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vlmprune.assets import load_embedded

from .conftest import Prompt, Reference
from .server import ask, body_of, metric, refusal, served, text_of

METHOD = "divprune"
KEEPS = {None: 0.25, 0.5: 0.5, 20: 20, 1.0: 1.0}  # what a request says, and what that comes to


@pytest.fixture(scope="module")
def server(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ours = ["--method", METHOD, "--keep", "0.25", "--allow-request-keep"]
    theirs = ["--data-parallel-size", "2", "--max-num-seqs", "4"]
    own = variables | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # each would take all cores for itself
    with served("llava", own, tmp_path_factory.mktemp("parallel"), ours, theirs) as at:
        yield at


def test_engines_answer_as_transformers_does(server: str, prompts: list[Prompt], reference: Reference) -> None:
    decode: Any = load_embedded("llava")[1].tokenizer
    asked, due = [], []
    for said, keep in KEEPS.items():
        more = {} if said is None else {"vlmprune_keep": said}
        for prompt, tokens in zip(prompts[:2], reference("llava", f"{METHOD}:{keep}"), strict=False):
            asked.append(body_of(prompt.question, [Path(prompt.pictures[0]).read_bytes()], **more))
            due.append(decode.decode(tokens, skip_special_tokens=True).strip())
    with ThreadPoolExecutor(len(asked)) as clients:
        replies = [*clients.map(lambda body: ask(server, body), asked)]
    assert [text_of(reply) for reply in replies] == due
    assert len({reply["usage"]["prompt_tokens"] for reply in replies}) >= len(KEEPS)
    for engine in ("0", "1"):
        assert metric(server, "request_success_total", engine=engine) > 0, "one engine had nothing to do"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too much": ({"vlmprune_keep": 2.0}, "vlmprune_keep must be a share above 0 and at most 1"),
    "options of a processor": ({"mm_processor_kwargs": {"size": 1}}, "takes no mm_processor_kwargs"),
    "its budget in there": ({"mm_processor_kwargs": {"vlmprune_keep": "0.5"}}, "takes no mm_processor_kwargs"),
    "options of media": ({"media_io_kwargs": {"image": {}}}, "takes no media_io_kwargs"),
    "a question": ({"vlmprune_query": "a car"}, "leave out vlmprune_query"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_requests_set_nothing_else(name: str, server: str, prompts: list[Prompt]) -> None:
    more, sentence = REFUSED[name]
    status, message = refusal(server, body_of("Hello", [], **more))
    assert status == 400 and sentence in message
