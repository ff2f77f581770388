"""`vlmprune serve -- --tensor-parallel-size 2`: an engine of two processes answers, and counts, as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmprune.assets import load_embedded

from .conftest import Prompt, Reference
from .server import ask, body_of, compared, metric, served, text_of

METHOD = "vispruner"  # reads attention, whose heads are shared out
WHOLE, KEPT = 196, 49  # tokens of an image


def test_two_ranks_answer_and_count_as_one(
    variables: dict[str, str], prompts: list[Prompt], reference: Reference, tmp_path: Path
) -> None:
    (counted := tmp_path / "counters").mkdir()
    own = variables | {"PROMETHEUS_MULTIPROC_DIR": str(counted)}
    ours = ["--method", METHOD, "--keep", "0.25", "--canary", "1"]
    due, unpruned = (texts_of(reference("llava", f"{METHOD}:{keep}")) for keep in (0.25, 1.0))
    with served("llava", own, tmp_path, ours, ["--tensor-parallel-size", "2", "--max-num-seqs", "4"]) as at:
        replies = [
            ask(at, body_of(one.question, [Path(name).read_bytes() for name in one.pictures])) for one in prompts
        ]
        found = compared(at, len(prompts))
        images = sum(len(one.pictures) for one in prompts)
        counters = ("images_total", "visual_tokens_before_total", "visual_tokens_after_total")
        figures = [metric(at, name) for name in counters]
        selecting = [path.name for path in counted.glob("counter_*.db") if selects(path)]
    assert [text_of(reply) for reply in replies] == due
    for reply, one in zip(replies, prompts, strict=True):
        pictures = len(one.pictures)
        assert reply["usage"]["vlmprune"] == {"visual_tokens": WHOLE * pictures, "kept": KEPT * pictures}
    assert figures == [images, WHOLE * images, KEPT * images], "those of the canary are not counted"
    apart = sum(pruned != whole for pruned, whole in zip(due, unpruned, strict=True))
    assert apart > 0, "these pictures prove nothing"
    assert found == {"total": len(prompts), "disagreements_total": apart, "failures_total": 0, "skipped_total": 0}
    assert len(selecting) == 1, "both processes select at once, and their time is counted once"


def texts_of(replies: list[list[int]]) -> list[str]:
    tokenizer: Any = load_embedded("llava")[1].tokenizer
    return [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in replies]


def selects(counters: Path) -> bool:
    """Whether the process that counts in this file has added to the time of selecting."""
    from prometheus_client.mmap_dict import MmapedDict

    rows = MmapedDict.read_all_values_from_file(str(counters))
    return any("vlmprune_selection_seconds" in key and value > 0 for key, value, *_ in rows)
