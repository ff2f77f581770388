"""One runner a golden method: builds the library's views from a case's arrays and compares everything it expects."""

from golden_runners import decoder, scored, texts, vision
from golden_runners.case import Case, Failed, Runner

RUNNERS: dict[str, Runner] = {
    "random_pre": vision.random_pre,
    "random_intra": decoder.random_intra,
    "divprune": vision.divprune,
    "unibench_tiles": vision.divprune_tiles,
    "hiprune": vision.hiprune,
    "visionzip": vision.visionzip,
    "fastv": decoder.fastv,
    "dart": decoder.dart,
    **scored.RUNNERS,
    **texts.RUNNERS,
}


def runner_of(case: Case) -> Runner | None:
    """The runner of a case, or None where the method is not in the library."""
    if case.group != case.method:
        return None
    return RUNNERS.get(case.method)


__all__ = ["RUNNERS", "Case", "Failed", "Runner", "runner_of"]
