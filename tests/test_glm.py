"""GLM-V: what transformers cannot tell apart is refused, and the token types of a video are those of its processor."""

from __future__ import annotations

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, generate, inputs_of, largest, oracle, policies

import vlmprune
from vlmprune import UserError
from vlmprune.core.view import Grid

BEAMS = {"num_beams": 2, "max_new_tokens": 3, "do_sample": False}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_beams_with_several_images_are_refused() -> None:
    """transformers gives the beams of a prompt with images A and B the images A, A, B, B."""
    model = built("glm4v")
    with vlmprune.prune(model, "divprune:0.4"):
        with pytest.raises(UserError, match=r"^transformers mixes up the images of glm4v .* one image per prompt\.$"):
            model.generate(**inputs_of("glm4v", RAGGED), **BEAMS)
        with pytest.raises(UserError, match="mixes up"):
            generate(model, inputs_of("glm4v", [[0, 1]]), do_sample=True, num_return_sequences=2)


@pytest.mark.parametrize("samples", [[[0]], [[0], [2]]])
def test_beams_with_one_image_per_prompt(samples: list[list[int | None]]) -> None:
    model, inputs = built("glm4v"), inputs_of("glm4v", samples)
    with vlmprune.prune(model, "divprune:0.4") as session:
        out = model.generate(
            **inputs, **BEAMS, length_penalty=0.0, return_dict_in_generate=True, output_scores=True
        )  # fmt: skip
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    logits = oracle("glm4v", samples, inputs, tokens, session.last, policies("divprune:0.4", "glm4v"))
    chosen = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].sum(1)
    assert largest(chosen, out.sequences_scores) < 10 * TOLERANCE  # a sum over steps


def test_beams_over_a_video_are_refused() -> None:
    """transformers looks for the id of a video, which no prompt has."""
    model = built("glm46v video")
    with (
        vlmprune.prune(model, "divprune:0.4"),
        pytest.raises(UserError, match=r"^transformers loses the videos of glm4v when it repeats a prompt: ask for"),
    ):
        model.generate(**inputs_of("glm46v video", [[0]]), **BEAMS)


def test_images_beside_videos_are_refused() -> None:
    model = built("glm4v")
    inputs = {**inputs_of("glm4v", [[0]]), **{
        name: value for name, value in inputs_of("glm4v video", [[0]]).items() if "video" in name
    }}  # fmt: skip
    with vlmprune.prune(model, "divprune:0.4"), pytest.raises(UserError, match="give either images or videos"):
        model(**inputs)


def test_a_video_is_one_piece_of_several_frames() -> None:
    """Of which the seconds between the frames all stay."""
    model, inputs = built("glm4v video"), inputs_of("glm4v video", RAGGED)
    with vlmprune.prune(model, "divprune", keep=5) as session:
        model(**inputs)
    report = session.last
    assert report.grids == [[Grid(2, 4, 2), Grid(3, 2, 3)], [Grid(4, 3, 2)]]
    for row, columns in enumerate(report.columns):
        ids, real = inputs["input_ids"][row], inputs["attention_mask"][row].bool()
        text = (real & (inputs["mm_token_type_ids"][row] == 0)).nonzero()[:, 0].tolist()
        assert {*text} <= {*columns.tolist()} and len(ids) > len(text)
