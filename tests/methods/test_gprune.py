"""G-Prune."""

from __future__ import annotations

import pytest
import torch
from harness_views import (
    INTERN,
    QWEN,
    WIDTH,
    anyres,
    check_picks,
    picked,
    shown,
    values,
)
from torch import Tensor

from vlmprune.core.selectors import top_k
from vlmprune.core.view import Grid
from vlmprune.methods.vision.gprune import GPrune


class TestGPrune:
    def naive(self, x: Tensor, asked: GPrune) -> Tensor:
        """The formula edge by edge, in float64."""
        n = len(x)
        unit = x.double() / x.double().norm(dim=1, keepdim=True)
        flow = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            edges = [j for j in range(n) if float(unit[i] @ unit[j]) >= asked.similarity]
            flow[i, edges] = torch.softmax(unit[edges] @ unit[i] / asked.temperature, 0)
        degree = (flow > 1e-45).sum(1)  # float32 knows no smaller number
        return x.double().norm(dim=1) @ torch.linalg.matrix_power(flow, asked.iterations) / degree

    @pytest.mark.parametrize("compat", ["paper", "official"])
    @pytest.mark.parametrize(
        ("similarity", "temperature", "iterations"), [(0.5, 0.03, 5), (0.2, 0.5, 1), (0.7, 0.1, 9)]
    )
    def test_mass_flows_along_edges(self, compat: str, similarity: float, temperature: float, iterations: int) -> None:
        asked = GPrune(similarity, temperature, iterations, compat=compat)
        x = values("noise", 6, WIDTH).repeat_interleave(8, 0) + 0.4 * values("noise", 48, WIDTH, seed=1)
        torch.testing.assert_close(asked.score(x).double(), self.naive(x, asked), rtol=1e-4, atol=1e-6)

    def test_a_token_alone_keeps_its_norm(self) -> None:
        x = torch.eye(WIDTH) * torch.arange(1.0, WIDTH + 1)[:, None]
        torch.testing.assert_close(GPrune().score(x), torch.arange(1.0, WIDTH + 1))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision_forms_the_power(self, dtype: str) -> None:
        x = values("noise", 40, WIDTH)
        rough = GPrune(similarity=0.2, temperature=0.5, score_dtype=dtype).score(x)
        assert rough.dtype == getattr(torch, dtype)
        torch.testing.assert_close(
            rough.float(), GPrune(similarity=0.2, temperature=0.5).score(x), rtol=0.05, atol=0.05
        )

    def test_base_and_canvas_are_a_graph_each_with_newlines_kept(self) -> None:
        view = anyres(GPrune(), 36, 2, 2)
        newlines, base, canvas = GPrune().parts(view)
        assert newlines.tolist() == (view.cells < 0).nonzero().squeeze(1).tolist()
        assert (len(base), len(canvas)) == (6, 22)  # 28 in proportion to 16 and 64: 5.6 and 22.4, both down, one more
        alone = GPrune().score(view["features"][:16])
        assert base.tolist() == top_k(alone, 6).tolist()

    def test_newlines_take_at_most_half_of_the_budget(self) -> None:
        newlines, base, canvas = GPrune().parts(anyres(GPrune(), 7, 2, 2))
        assert len(newlines) == 3 and len(base) + len(canvas) == 4

    @pytest.mark.parametrize("keep", [3, 5, 9])
    def test_where_little_else_is_left_newlines_fill_the_budget(self, keep: int) -> None:
        view = anyres(GPrune(), keep, 2, 2)
        tokens = torch.cat([torch.tensor([3, 5]), (view.cells < 0).nonzero().squeeze(1)])
        part = view.part(tokens, keep, {"features": view["features"][tokens]})
        newlines, base = GPrune().parts(part)
        assert (len(newlines), len(base)) == {3: (1, 2), 5: (3, 2), 9: (7, 2)}[keep]
        check_picks(picked(GPrune(), part), keep, 10)

    def test_official_keeps_newlines_beyond_the_budget(self) -> None:
        official = GPrune(compat="official")
        view = anyres(official, 44, 2, 2)  # half of 88
        assert [len(part) for part in official.parts(view)] == [8, 8, 32]
        assert len(picked(official, view)) == 48 and not official.exact

    def test_uniprune_sets_the_first_tile_apart_on_internvl(self) -> None:
        uniprune = GPrune(compat="uniprune")
        view = shown(uniprune, n=80, keep=27, info=INTERN, grid=Grid(4, 4, 5))
        assert [len(graph) for graph in uniprune.graphs(view)] == [16, 64]
        assert [len(part) for part in uniprune.parts(view)] == [0, 5, 21]  # 5.4 and 21.6, both down
        assert not uniprune.exact
        assert [len(graph) for graph in GPrune().graphs(view)] == [80]
        view.info = QWEN
        assert [len(graph) for graph in uniprune.graphs(view)] == [80]
