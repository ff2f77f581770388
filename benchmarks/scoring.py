"""What the attention statistics cost, beside what they are read from and beside the eager way.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --device cuda --model llava-1.5-7b --tower llava-1.5-7b:encoder_layers=24

A row of the last prompt token at one decoder layer (FastV), as a share of the unpruned prefill; the attention that each
token receives at one encoder layer (HiPrune), as a share of the tower. Both are computed from the queries and keys of a
real call. The eager way gets the same numbers from transformers: the attention matrices of all layers
(`output_attentions=True`), which needs its eager kernel. Times are the least of the turns; `peak` is the highest sum of
live allocations beyond weights and inputs. Weights are random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from beside import Figures, noise, parser, timed, turns
from torch import Tensor, nn
from transformers import AutoModel

from vlmprune.bench.random_models import Architecture, random_model
from vlmprune.bench.timing import peak_bytes
from vlmprune.runtime.taps import AttentionCall, capture
from vlmprune.scores import attention_rows, received_attention

SMALL = "llava-1.5-7b:layers=8,encoder_layers=1,shrink=4"  # 1,024 wide
TOWER = "llava-1.5-7b:encoder_layers=12"
PROMPT = 616
ROW_TARGET, RECEIVED_TARGET = 0.01, 0.03


class Read:
    """A forward, what is read of one attention call in it, and the eager way to the same.

    Args:
        module: a transformers model.
        attentions: its attention modules; the call of the one in the middle is read.
        inputs: of the model.
    """

    def __init__(
        self,
        module: Any,
        attentions: Sequence[nn.Module],
        inputs: dict[str, Any],
        statistic: Callable[[AttentionCall], Tensor],
        device: str,
    ) -> None:
        self.module, self.inputs, self.statistic, self.device = module, inputs, statistic, device
        read = attentions[len(attentions) // 2]
        with capture([read]) as calls:
            self.plain()
        [self.call] = calls[read]

    def plain(self) -> None:
        self.module(**self.inputs)

    def eager(self) -> None:
        before = self.module.config._attn_implementation
        self.module.set_attn_implementation("eager")
        try:
            self.module(**self.inputs, output_attentions=True)
        finally:
            self.module.set_attn_implementation(before)

    def score(self) -> None:
        self.statistic(self.call)

    def measured(self, repeats: int) -> dict[str, Any]:
        ways = [partial(timed, way, self.device) for way in (self.plain, self.score, self.eager)]
        plain, score, eager = turns(ways, repeats)
        device = torch.device(self.device)
        peaks = {
            f"{way.__name__}_peak_mb": peak_bytes(device, way) / 2**20 for way in (self.plain, self.score, self.eager)
        }
        return {
            "plain_ms": min(plain), "score_ms": min(score), "eager_ms": min(eager), "share": min(score) / min(plain),
            "eager_share": min(eager) / min(plain) - 1, "noise": noise(plain), **peaks,
        }  # fmt: skip


def last_row(call: AttentionCall) -> Tensor:
    return attention_rows(call.query[:, :, -1:], call.key, call.scaling)


def received(call: AttentionCall) -> Tensor:
    return received_attention(call.query, call.key, call.scaling, call.real)


def of_decoder(name: str, tokens: int, device: str) -> Read:
    text: Any = random_model(Architecture.parse(name), device).get_decoder()
    draw = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, tokens, text.config.hidden_size, generator=draw).to(device, text.dtype)
    inputs = {"inputs_embeds": embeds, "use_cache": True}
    return Read(text, [layer.self_attn for layer in text.layers], inputs, last_row, device)


def of_tower(name: str, device: str) -> Read:
    config = Architecture.parse(name).config().vision_config
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        tower: Any = AutoModel.from_config(config, dtype=kind).eval()
    side = config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device, kind)
    attentions = [module for module in tower.modules() if type(module).__name__.endswith("Attention")]
    return Read(tower, attentions, {"pixel_values": pixels}, received, device)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "scoring.json", repeats=4)
    made.add_argument("--model", default=SMALL, help=f"whose decoder (default: {SMALL})")
    made.add_argument("--tower", default=TOWER, help=f"whose vision tower, a CLIP (default: {TOWER})")
    made.add_argument("--tokens", type=int, default=PROMPT, help="of the prompt (default: %(default)s)")
    asked = made.parse_args(arguments)
    figures = Figures(asked)
    row = of_decoder(asked.model, asked.tokens, asked.device).measured(asked.repeats)
    figures.add(what="a row at one layer", of="prefill", **row, target=ROW_TARGET)
    column = of_tower(asked.tower, asked.device).measured(asked.repeats)
    figures.add(what="received attention at one layer", of="tower", **column, target=RECEIVED_TARGET)


if __name__ == "__main__":
    main()
