"""Published methods that the library does not have, each with the reason; shown on the page of methods."""

NOT_IMPLEMENTED: dict[str, str] = {
    "dcp": (
        "Dual-Cue Pruning (EMNLP 2025) has no public code. What has been published leaves open which encoder layer and "
        "which text it reads, and how its two cues are scaled and combined. It also needs gradients through the vision "
        "tower."
    ),
}
