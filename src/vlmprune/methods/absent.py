"""Published methods that the library does not have, each with the reason, for the table of methods."""

NOT_IMPLEMENTED: dict[str, str] = {
    "dcp": (
        "Dual-Cue Pruning (EMNLP 2025) has no public code, and what is public of it leaves open the encoder layer, how "
        "its two cues are scaled and joined and which text is read; it also needs gradients through the vision tower."
    ),
}
