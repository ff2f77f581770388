"""One runner a golden method: builds the library's views from a case's arrays and compares everything it expects."""

from golden_runners import (
    adaptive,
    apet,
    before,
    decoder,
    inside,
    nuwa,
    scored,
    spatial,
    staged,
    texts,
    video,
    vision,
    visiondrop,
    vlmpruner,
)  # fmt: skip
from golden_runners.case import Case, Failed, Runner, Skipped

RUNNERS: dict[str, Runner] = {
    "random_pre": vision.random_pre,
    "random_intra": decoder.random_intra,
    "divprune": vision.divprune,
    "hiprune": vision.hiprune,
    "visionzip": vision.visionzip,
    "fastv": decoder.fastv,
    "dart": decoder.dart,
    **scored.RUNNERS,
    **spatial.RUNNERS,
    **texts.RUNNERS,
    **staged.RUNNERS,
    **adaptive.RUNNERS,
    **before.RUNNERS,
    **inside.RUNNERS,
    **video.RUNNERS,
    "apet": apet.apet,
    "nuwa": nuwa.nuwa,
    "visiondrop": visiondrop.visiondrop,
    "vlmpruner": vlmpruner.vlmpruner,
}


TILES: dict[str, Runner] = {"divprune_pre_llm": vision.divprune_tiles, **spatial.TILES}  # folder "unibench_tiles"


def runner_of(case: Case) -> Runner | None:
    """The runner of a case, or None where the method is not in the library."""
    if case.method == "unibench_tiles":
        return TILES.get(case.function)
    return RUNNERS.get(case.method)


__all__ = ["RUNNERS", "Case", "Failed", "Runner", "Skipped", "runner_of"]
