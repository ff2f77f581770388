"""The mean of two exported models of one shape: python -m training.mean BEFORE AFTER --out FOLDER.

Training on moves a model away from what it learnt before. A part of the way may have the best of both.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.train import ASSETS
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import check_folder


def mean_of(before: dict[str, Tensor], after: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Tensor by tensor, in their precision.

    Args:
        share: of the later ones in the mean, from 0 to 1.

    Raises:
        UserError: the two are not of one shape.
    """
    shapes = [{name: values.shape for name, values in tensors.items()} for tensors in (before, after)]
    if shapes[0] != shapes[1]:
        raise UserError("The two models differ in their weights' names or shapes: give two exports of one recipe.")
    return {
        name: torch.lerp(before[name].double(), values.double(), share).to(values) for name, values in after.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="folder of an exported model")
    parser.add_argument("after", type=Path, help="the one trained on; its other files are taken")
    parser.add_argument("--share", type=float, default=0.5, help="of AFTER in the mean (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--force", action="store_true", help="write into a folder of --out that holds other files")
    args = parser.parse_args()
    if not 0 <= args.share <= 1:
        parser.error(f"--share must be from 0 to 1, not {args.share:g}.")
    try:
        check_folder(args.out, "model", force=args.force or args.out.parent == ASSETS)
        found = {path.relative_to(args.after) for path in args.after.rglob("*.safetensors")}
        means = {
            path: mean_of(load_file(args.before / path), load_file(args.after / path), args.share)
            for path in sorted(found)
        }
    except UserError as error:
        parser.error(error.typed)
    shutil.copytree(args.after, args.out, dirs_exist_ok=True)
    for path, tensors in means.items():
        save_file(tensors, args.out / path, metadata={"format": "pt"})
        (args.out / path).chmod(0o644)  # safetensors writes files that only their owner can read


if __name__ == "__main__":
    main()
