"""Runners of methods that act at several decoder layers, or drop an image at one: replayed stage by stage."""

from __future__ import annotations

from golden_runners.case import Case
from vlmprune.methods.cluster import cluster_merge

TOLERANCE = 2e-5


def cluster_and_merge(case: Case) -> None:
    clusters = cluster_merge(case.input("x"), case["clusters"], case.input("noise") if "noise" in case else None)
    case.expect("merged", clusters.merged, TOLERANCE)
