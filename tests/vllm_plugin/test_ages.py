"""Budgets by the age of an image: what is left of it changes once, when another image becomes the latest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlmprune.core.errors import UserError
from vlmprune.serve.vllm.asked import Asked

from .conftest import Engine, Prompt, Reference
from .server import ask, body_of, metric, refusal, served, text_of

AGES = "0.5/latest+0.1/older"
PARTS = {"max_num_batched_tokens": 48}  # prompts are longer, and images are cut in two
LATEST, OLDER = 98, 20  # of the 196 tokens of an image


@pytest.mark.parametrize(
    ("model", "recipe", "given"),
    [
        ("llava", f"divprune:{AGES}", PARTS),
        ("qwen2_5_vl", f"vispruner:{AGES}", {}),
        ("llava_next", f"divprune:{AGES}", {"mm_processor_cache_gb": 0}),
    ],
)
def test_tokens_are_those_of_transformers(
    model: str, recipe: str, given: dict[str, Any], engine: Engine, reference: Reference, pictures: tuple[str, str]
) -> None:
    """One picture is the latest of a prompt and an older one of another, which run at once and again."""
    wide, high = pictures
    asked = [Prompt("What number is on the plate?", own) for own in ((wide,), (wide, high), (high, wide), (high,))]
    first, again = engine(model, [recipe], asked=asked, rounds=2, **given)
    due = reference(model, recipe, asked)
    assert [reply.tokens for reply in first] == [reply.tokens for reply in again] == due
    assert all(reply.cached >= 32 for reply in again), "the second round must find its prompts in the cache"


def test_nothing_else_is_said_of_ages() -> None:
    from vlmprune.serve.vllm.ages import keeps_by_age
    from vlmprune.serve.vllm.processor import PrunedProcessingInfo

    def by_age(**options: object) -> list[str] | None:
        return keeps_by_age(Asked(f"divprune:{AGES}").ages, 3, options)

    assert by_age() == ["0.1", "0.1", "0.5"]
    assert by_age(vlmprune_latest="2") == ["0.1", "0.5", "0.5"]
    assert by_age(vlmprune_keep="1.0") is None and keeps_by_age(Asked("divprune:0.5").ages, 3, {}) is None
    for wrong in ("no", 0, "-1"):
        with pytest.raises(UserError, match=f"must be a number of images, not '{wrong}'"):
            by_age(vlmprune_latest=wrong)
    info: Any = SimpleNamespace(asked=Asked("divprune:0.5"), reads=False)
    with pytest.raises(UserError, match=r"divprune:0\.5 has no budget by age"):
        PrunedProcessingInfo.parted(info, {"vlmprune_latest": "1"})


@pytest.fixture(scope="module")
def server(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ours = ["--method", "divprune", "--keep-latest", "0.5", "--keep-older", "0.1"]
    with served("llava", variables, tmp_path_factory.mktemp("ages"), ours, ["--max-num-seqs", "4"]) as at:
        yield at


def test_a_conversation_in_which_pictures_pile_up(server: str, pictures: tuple[str, str]) -> None:
    """A turn finds the one before in the cache, up to the image that was the latest then."""
    wide, high = (body_of("", [Path(name).read_bytes()])["messages"][0]["content"][0] for name in pictures)
    question = {"type": "text", "text": "what number is on the plate ?"}
    messages: list[dict[str, Any]] = []
    older, found = 0, []
    for shown in ([wide], [high], [wide], [high, wide]):
        messages.append({"role": "user", "content": [*shown, question]})
        before = metric(server, "prefix_cache_hits_total")
        reply = ask(server, {**body_of("", []), "messages": messages})
        kept = OLDER * older + LATEST * len(shown)
        assert reply["usage"]["vlmprune"] == {"visual_tokens": 196 * (older + len(shown)), "kept": kept}
        found.append(metric(server, "prefix_cache_hits_total") - before)
        messages.append({"role": "assistant", "content": text_of(reply)})
        older += len(shown)
    assert found[0] == 0 and found[2] >= 32, "the first image, and what was said of it, are as they were"
    assert found[3] > found[2], "so is the second"


def test_clients_do_not_say_how_old_images_are(server: str) -> None:
    status, message = refusal(server, body_of("Hello", [], mm_processor_kwargs={"vlmprune_latest": "2"}))
    assert status == 400 and "takes no mm_processor_kwargs" in message
