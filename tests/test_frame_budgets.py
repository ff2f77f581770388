"""A budget for each frame of a video: `keep="16/frame"` and `keep=[128, 64, 32]`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import STEPS, TOLERANCE, blind, built, generate, inputs_of, largest, oracle, runnable
from harness import policies as policies_of
from torch import Tensor

import vlmprune
from vlmprune.core.budget import ByFrame, check_budget
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import recipe
from vlmprune.core.report import RunReport
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES

# on the others each frame, or each chunk of frames, is an image of its own
VIDEOS = [key for key, family in FAMILIES.items() if key.endswith(" video") and family.slot_grid(0)[0].frames > 1]
OF_THREE = ("llava_onevision video", "video_llava video", "llava_next_video video")
SIZES = {key: [4, 2, 6] for key in OF_THREE}  # three frames of nine slots
SIZES |= {key: [5, 3] for key in VIDEOS if key not in SIZES}  # two frames of eight slots


ASKED = ["divprune:{}", "hiprune:{}", "fastv@2:{}", "divprune:7/frame > fastv@2:{}", "divprune(per=frame):{}"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def ran(family: str, spec: str, keep: Any = None, samples: Any = ((0,),), **options: Any) -> tuple[Tensor, RunReport]:
    with torch.no_grad(), vlmprune.prune(built(family), spec, keep, **options) as session:
        logits = built(family)(**inputs_of(family, [list(sample) for sample in samples])).logits
    return logits, session.last


def by_frame(report: RunReport, sample: int = 0, number: int = 0) -> list[int]:
    return [len(kept) for kept in report.by_frame(sample, number)]


def honours(name: str, family: str = "qwen2_5_vl") -> bool:
    try:
        acts_of(vlmprune.METHODS[name](), ByFrame((3,), alike=True), adapter_for(built(family)).info)
    except vlmprune.UserError:
        return False
    return True


HONOURING = [name for name in vlmprune.METHODS if honours(name)]


def test_what_selects_once_before_the_llm_can() -> None:
    """All but those that act before the encoder, between frames or several times."""
    before = {name for name, cls in vlmprune.METHODS.items() if cls.stage == "vision"}
    assert before - set(HONOURING) == {"evs"}
    assert {"fastv", "dart", "random"} <= set(HONOURING)
    assert not {"pyramiddrop", "sparsevlm", "vtw", "downsample", "apet"} & set(HONOURING)


@pytest.mark.parametrize("name", HONOURING)
@pytest.mark.parametrize("family", ["qwen2_5_vl video", "llava_onevision video"])
def test_every_frame_keeps_its_number(family: str, name: str) -> None:
    sizes = SIZES[family]
    report = ran(family, name, sizes)[1]
    assert report.tokens[0][1] == sum(sizes)
    if report.merged == [0]:
        assert by_frame(report) == sizes
    else:  # several new tokens may lend their place from one slot, and a CLS token has none
        assert all(found <= size for found, size in zip(by_frame(report), sizes, strict=True))


@pytest.mark.parametrize(
    ("family", "spec"), [(family, spec) for family in VIDEOS for spec in ASKED if runnable(family, [spec.format(1)])]
)
def test_it_equals_the_oracle(family: str, spec: str) -> None:
    """Beside a longer sample of the same number of frames, which makes padding."""
    asked, samples = spec.format(f"{SIZES[family]}/frame"), [[0], [2]]
    inputs = inputs_of(family, samples)
    with torch.no_grad(), vlmprune.prune(built(family), asked) as session:
        tokens, logits = generate(built(family), inputs)
    report = session.last
    due = oracle(family, samples, inputs, tokens, report, policies_of(asked, family))
    assert largest(logits, due) < TOLERANCE and tokens.shape[1] == STEPS
    for sample in range(2):
        assert by_frame(report, sample) == SIZES[family]


@pytest.mark.parametrize("family", VIDEOS)
def test_one_number_for_all_frames_is_that_part_of_the_budget(family: str) -> None:
    """Where frames are alike, it is the even share of one budget, to the last bit."""
    frames = len(SIZES[family])
    blank = any(not slot for slot in FAMILIES[family].patches(0))  # a newline counts in no frame
    names = ["hiprune"] if blank else ["hiprune", "divprune", "fastv", "visionzip"]
    for spec in [name for name in names if runnable(family, [f"{name}:1"])]:
        each, all_ = ran(family, spec, "4/frame"), ran(family, f"{spec}(per=frame)", 4 * frames)
        assert torch.equal(each[0], all_[0]), spec
        listed = ran(family, spec, [4] * frames)
        assert torch.equal(each[0], listed[0]), spec


@pytest.mark.parametrize("family", VIDEOS)
def test_shares_and_what_is_too_much(family: str) -> None:
    report = ran(family, "divprune", [0.5, *[100] * (len(SIZES[family]) - 1)])[1]
    size = FAMILIES[family].slot_grid(0)[0]
    whole = size.rows * size.cols
    assert by_frame(report) == [round(0.5 * whole), *[whole] * (len(SIZES[family]) - 1)]
    kept = ran(family, "divprune" if blind(family) else "hiprune", "100/frame")
    with torch.no_grad():
        vanilla = built(family)(**inputs_of(family, [[0]])).logits
    assert torch.equal(kept[0], vanilla)


def test_a_picture_is_one_frame_and_tiles_are_not() -> None:
    for family in ("llava", "llava_next", "qwen2_5_vl"):
        for spec in ("divprune", "fastv"):
            assert torch.equal(ran(family, spec, "5/frame")[0], ran(family, spec, 5)[0])
            assert torch.equal(ran(family, spec, "[0.3]/frame")[0], ran(family, spec, 0.3)[0])
    report = ran("qwen2_5_vl mixed", "divprune", "3/frame", [[0, 1]])[1]  # an image beside a video of three frames
    assert report.tokens[0][1] == 3 + 9 and by_frame(report, number=1) == [3, 3, 3]
    report = ran("qwen2_5_vl mixed", "divprune", [0.5, "2/frame"], [[0, 1]])[1]
    assert by_frame(report, number=1) == [2, 2, 2] and len(report.kept[0][0]) == 12


def test_a_list_has_a_budget_for_each_image_first() -> None:
    """Two videos of two frames each and two budgets: one for each video."""
    report = ran("qwen3_vl video", "divprune", [5, 3], [[0, 2]])[1]
    assert [len(kept) for kept in report.kept[0]] == [5, 3]
    report = ran("qwen3_vl video", "divprune", [[5, 3], [6]], [[0], [2]])[1]
    assert by_frame(report) == [5, 3] and len(report.kept[1][0]) == 6


@pytest.mark.parametrize(
    ("family", "spec", "keep", "sentence"),
    [
        ("qwen2_5_vl video", "divprune", [5, 3, 2], "has 3 budgets for sample 0, whose prompt has one video of 2 fr"),
        ("qwen2_5_vl video", "divprune", "[5, 3, 2]/frame", r"keep=\[5, 3, 2\]/frame has 3 budgets where there are 2"),
        ("qwen2_5_vl video", "fastv", "[5]/frame", "has 1 budget where there are 2 frames"),
        ("qwen2_5_vl", "divprune", "[5, 3]/frame", "has 2 budgets where there is 1 frame:"),
        ("qwen2_5_vl", "divprune", [5, 3], "has 2 budgets for sample 0, whose prompt has 1 image:"),
        ("qwen2_5_vl video", "evs", "5/frame", "evs cannot keep 5/frame, because it does not select frame by frame"),
        ("qwen2_5_vl video", "evs", [5, 3], "evs cannot keep .*, because it does not select frame by frame"),
        ("qwen2_5_vl video", "pyramiddrop", [0.5, 0.3], "pyramiddrop cannot keep .*several decoder layers"),
        ("qwen2_5_vl video", "vtw", "5/frame", "vtw cannot keep 5/frame, because"),
        ("qwen2_5_vl video", "downsample", "5/frame", "downsample cannot keep 5/frame"),
        ("qwen2_5_vl video", "divprune(per=image)", "5/frame", "per='image' lets all tokens of a video compete"),
        ("qwen2_5_vl video", "divprune:mean=5/frame", None, "A budget of mean=5/frame is unclear"),
        ("qwen2_5_vl video", "divprune", "0/frame", "'0' is not a budget"),
        ("qwen2_5_vl video", "divprune", "many/frame", "'many' is not a budget"),
        ("qwen2_5_vl video", "divprune", "[[5], [3]]/frame", "is not a budget for each frame: write 16/frame or"),
        ("qwen2_5_vl video", "divprune", "5/second", "is not a budget"),
    ],
)
def test_what_does_not_fit_is_told(family: str, spec: str, keep: Any, sentence: str) -> None:
    with pytest.raises(vlmprune.UserError, match=sentence) as error:
        ran(family, spec, keep)
    assert str(error.value).count(". ") == 0


def test_how_it_is_written() -> None:
    for text in ("divprune:16/frame", "divprune:[128, 0.5]/frame", "fuse(divprune:4/frame, tau=0.1)@2"):
        parsed = recipe(text)
        assert str(parsed) == text and recipe(str(parsed)) == parsed
    assert recipe("divprune", keep="16/frame") == recipe("divprune:16/frame")
    text = "divprune:[0.5, '16/frame']"
    assert str(recipe(text)) == text and recipe(text) == recipe("divprune", keep=[0.5, "16/frame"])
    assert check_budget("[1, 1.0]/frame") == ByFrame((1, 1.0), alike=False)


class ReadsKeep(Method):
    """Notes the budget that it is told."""

    name, stage, seen = "reads-keep", "vision", list[Any]()

    def select(self, view: Any) -> Tensor:
        self.seen.append((view.act.keep, view.act.by_frame, view.keep, view.n))
        return torch.arange(view.keep)


def test_a_method_is_told_the_budget_of_its_frame() -> None:
    method = ReadsKeep()
    with torch.no_grad(), vlmprune.prune(built("qwen2_5_vl video"), method, [0.5, 3]):
        built("qwen2_5_vl video")(**inputs_of("qwen2_5_vl video", [[0]]))
    assert method.seen == [(4, None, 4, 8), (3, None, 3, 8)]


def test_a_benchmark_has_one_budget_for_all_frames() -> None:
    from vlmprune.bench.plan import variants_of

    with pytest.raises(vlmprune.UserError, match="a benchmark gives all images the same"):
        variants_of("divprune:16/frame", [0.5])
