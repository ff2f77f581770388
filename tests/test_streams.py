"""Conversations about videos on one cache: a further question, and a video that grows turn by turn."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import STEPS, TEXT, TOLERANCE, built, extend, largest, text_part
from harness import policies as policies_of
from torch import Tensor
from versions import behind, cache_of

import vlmprune
from vlmprune.core.report import RunReport
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import oracle
from vlmprune.testing import FAMILIES, Family, image_numbers, prompt
from vlmprune.testing.qwen import video

Inputs = dict[str, Tensor]
SPECS = {"before": "divprune:0.4", "inside": "fastv@2:0.4", "both": "divprune:0.7/frame > fastv@2:0.5"}
PIXELS, GRID = "pixel_values_videos", "video_grid_thw"
PLACES, FRAMES = "video_position_ids", "num_frames_per_video"
QUESTION = [21, 22, 23, 24]
LONG = {0: (8, 4, 4), 1: (6, 6, 4), 2: (2, 4, 4)}  # text behind the first has smaller ids than its last frames
MANY = {0: (24, 2, 4), 1: (20, 4, 2), 2: (24, 2, 4)}  # likewise where frames count by one
STREAMS: dict[str, Family] = {
    key: family for key, family in FAMILIES.items() if key.endswith(" video") and "new image" not in family.lacks
}
STREAMS |= {
    "qwen2_5_vl long": replace(FAMILIES["qwen2_5_vl video"], kind=video(seconds=True, grid_of=LONG.__getitem__)),
    "qwen2_vl long": replace(FAMILIES["qwen2_vl video"], kind=video(grid_of=MANY.__getitem__)),
}
CASES = [(name, spec, positions) for name in STREAMS for spec in SPECS for positions in ("original", "compact")]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model_of(name: str) -> Any:
    return built(name.replace(" long", " video"))


def side_by_side(parts: list[Inputs]) -> Inputs:
    """The texts of several turns as one prompt."""
    return {key: torch.cat([part[key] for part in parts], dim=1) for key in parts[0]}


def rows_of(turn: Inputs) -> list[int] | int:
    """How many rows of the pixels each video of a turn has: patches (Qwen), frames (Gemma 4), or one."""
    if GRID in turn:
        return [int(count) for count in turn[GRID].prod(1)]
    return [int(count) for count in turn[FRAMES]] if FRAMES in turn else 1


def by_row(turns: list[Inputs], rows: int) -> Inputs:
    """The videos of several turns, one of each row in each, in the order in which one prompt would hold them."""
    found = {}
    for name in turns[0]:
        counts = [rows_of(turn) if name in (PIXELS, PLACES) else 1 for turn in turns]
        pieces = [turn[name].split(count) for turn, count in zip(turns, counts, strict=True)]
        found[name] = torch.cat([turn[row] for row in range(rows) for turn in pieces])
    return found


class Stream:
    """Turns of `generate` on one cache, the first two with a video for each row, and the last with a question alone.

    Attributes:
        texts: what stands in the cache or was said, part by part; `images` the number of the video of each column.
        videos: pixels and grids of each turn.
        ends: columns before each turn's answer.
        logits: of each turn's answer.
        reports: of the turns with videos.
    """

    def __init__(self, name: str, seeds: list[list[int]]) -> None:
        self.name, self.model, self.rows = name.replace(" long", " video"), model_of(name), len(seeds[0])
        family = STREAMS[name]
        self.turns = [prompt(family, [[seed] for seed in turn], seed=50 * k) for k, turn in enumerate(seeds)]
        self.numbers = [image_numbers(family, [[seed] for seed in turn]) for turn in seeds]
        self.texts, self.images, self.videos = list[Inputs](), list[Tensor](), list[Inputs]()
        self.ends, self.logits, self.reports = list[int](), list[Tensor](), list[RunReport]()

    def run(self, session: Any) -> None:
        cache: dict[str, Any] = {}
        for number in range(3):
            video: Inputs = {}
            if number < 2:
                self._say(text_part(self.turns[number]), self.numbers[number] + number * (self.numbers[number] >= 0))
                video = {key: value for key, value in self.turns[number].items() if key not in TEXT}
                self.videos.append(video)
            else:
                self._say_tokens(torch.tensor([QUESTION]).expand(self.rows, -1))
            whole = side_by_side(self.texts)
            self.ends.append(whole["input_ids"].shape[1])
            out = self.model.generate(
                **whole, **video, **cache, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False,
                suppress_tokens=[*adapter_for(self.model).placeholder_ids.values()],
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            cache = behind(cache_of(out))
            self.logits.append(torch.stack(out.logits, dim=1))
            self.reports += [session.last] if video else []
            self._say_tokens(out.sequences[:, self.ends[-1] :])

    def _say(self, text: Inputs, images: Tensor) -> None:
        self.texts.append(text)
        self.images.append(images)

    def _say_tokens(self, tokens: Tensor) -> None:
        longer = extend(self.name, self.texts[0], tokens)
        self._say({key: value[:, -tokens.shape[1] :] for key, value in longer.items()}, torch.full_like(tokens, -1))

    def due(self, turn: int, policies: dict[int, str]) -> Tensor:
        """What the oracle of the whole conversation gives for the tokens of a turn's answer."""
        videos = min(turn + 1, 2)
        report = copy.deepcopy(self.reports[0])
        for (_, kept), (_, later) in zip(report.stages, self.reports[1].stages if videos == 2 else (), strict=False):
            for row, more in zip(kept, later, strict=True):
                row += more
        parts = 2 * turn + 1
        inputs = {**side_by_side(self.texts[:parts]), **by_row(self.videos[:videos], self.rows)}
        answer = self.texts[parts]["input_ids"]
        images = torch.cat(self.images[:parts], dim=1)
        positions = self.positions(turn, inputs, answer)
        return oracle(self.model, inputs, [inputs], answer, report, policies, images, positions)

    def positions(self, turn: int, inputs: Inputs, answer: Tensor) -> Tensor | None:
        """As they were counted: by the model's rule, and in the last turn from the largest id on."""
        inner = adapter_for(self.model).inner
        if not hasattr(inner, "get_rope_index"):
            return None
        longer = extend(self.name, inputs, answer[:, :-1])
        rest = {key: value for key, value in longer.items() if key not in ("input_ids", PIXELS)}
        found = inner.get_rope_index(longer["input_ids"], **rest)[0]
        if turn == 2:
            jump = found[..., : self.ends[1]].amax((0, 2)) - found[0, :, self.ends[1] - 1]
            self.jump = int(jump.max())
            found[..., self.ends[1] + STEPS - 1 :] += jump[:, None]  # the answer's last token is fed with the question
        return found


@torch.no_grad()
@pytest.mark.parametrize(("name", "spec", "positions"), CASES)
def test_a_growing_video_equals_the_oracle(name: str, spec: str, positions: str) -> None:
    """A video, then another one, then a question about both: each turn on the cache of the last."""
    stream = Stream(name, [[0], [1]] if "3_5" in name else [[0, 1], [1, 2]])  # no oracle for padding on the former
    with vlmprune.prune(stream.model, SPECS[spec], positions=positions) as session:
        stream.run(session)
    policies = policies_of(SPECS[spec], stream.name, positions)
    for turn in range(3):
        assert largest(stream.logits[turn], stream.due(turn, policies)) < TOLERANCE, turn
    if "long" in name:
        assert stream.jump > 0


@torch.no_grad()
@pytest.mark.parametrize("name", STREAMS)
def test_a_first_video_that_is_kept_whole(name: str) -> None:
    """Its cache was never pruned, and yet it is known where it ended."""
    stream = Stream(name, [[0], [1]])
    with vlmprune.prune(stream.model, "divprune", keep=100) as session:
        stream.run(session)
    assert all(before == after for report in stream.reports for before, after in report.tokens)
    for turn in range(3):
        assert largest(stream.logits[turn], stream.due(turn, {})) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl video", "qwen2_5_vl video", "qwen3_vl video"])
def test_what_cannot_be_placed_is_refused(name: str) -> None:
    model, first, more = built(name), prompt(FAMILIES[name], [[0]]), prompt(FAMILIES[name], [[1]], seed=50)
    whole = side_by_side([text_part(first), text_part(more)])
    pixels = {key: value for key, value in more.items() if key not in TEXT}
    with vlmprune.prune(model, "divprune:0.4"):
        out = model(**first, use_cache=True)
        with pytest.raises(vlmprune.UserError, match="does not place new images behind a cache by itself"):
            model(**{**more, "attention_mask": None}, **behind(copy.deepcopy(cache_of(out))))
        both = {**pixels, GRID: torch.cat([first[GRID], more[GRID]])}
        with pytest.raises(vlmprune.UserError, match="give pixels and grids of the new images and videos alone"):
            model.generate(**whole, **both, max_new_tokens=2, **behind(copy.deepcopy(cache_of(out))))
    plain = model(**first, use_cache=True)
    with (
        vlmprune.prune(model, "divprune:0.4"),
        pytest.raises(vlmprune.UserError, match="where the earlier turns of this cache ended: pass position_ids"),
    ):
        model.generate(**whole, **pixels, max_new_tokens=2, **behind(cache_of(plain)))
