"""MustDrop, AutoPrune, FitPrune, TopV: what each says of itself."""

from __future__ import annotations

from typing import Any

import pytest
from golden_runners.spatial_merge import SpatialMerge
from harness_staged import LLAVA

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.view import ModelInfo
from vlmprune.methods.decoder.autoprune import AutoPrune
from vlmprune.methods.decoder.fitprune import FitPrune
from vlmprune.methods.decoder.mustdrop import MustDrop
from vlmprune.methods.decoder.topv import TopV

QWEN = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)


@pytest.mark.parametrize("cls", [MustDrop, AutoPrune, FitPrune, TopV, SpatialMerge])
def test_a_method_says_what_it_is(cls: type[Method]) -> None:
    assert cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    for heading in ("Paper:", "Formula:", "Defaults:", "Args:", "Differences from the authors' code:"):
        assert heading in (cls.__doc__ or ""), heading
    if cls in (MustDrop, AutoPrune, SpatialMerge):
        assert [cls().positions(info) for info in (LLAVA, QWEN)] == ["compact", "original"]
    else:
        assert cls().positions(LLAVA) == "original"


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MustDrop, {"key_share": 1.5}),
        (MustDrop, {"kv_prune": 1}),
        (MustDrop, {"global_threshold": -1.0, "individual_threshold": 0.1}),
        (AutoPrune, {"flash": "yes"}),
        (AutoPrune, {"mi_rows": "all"}),
        (AutoPrune, {"mi_reduce": "max"}),
        (AutoPrune, {"gamma": -0.1}),
        (AutoPrune, {"x0": "14"}),
        (FitPrune, {"compat": "official"}),
        (TopV, {"feature": "l1"}),
        (TopV, {"eps": 0}),
        (TopV, {"recover": 2}),
        (TopV, {"iterations": 0}),
        (SpatialMerge, {"side": 1}),
    ],
)
def test_a_wrong_option_is_one_sentence(cls: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{cls.name}: {next(iter(options))}=.* must be .*\.$"):
        cls(**options)
