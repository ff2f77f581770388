"""What pages are made with: templates beside the code that fills them, and pictures inside the page."""

from __future__ import annotations

import base64
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from jinja2 import Template


@cache
def template(path: Path) -> Template:
    """The template in a file, which can include those beside it; a name that it is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(path.parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(path.name)


def data_url(image: Image.Image, form: str = "PNG") -> str:
    """A picture inside a page, which needs no other file."""
    file = BytesIO()
    image.save(file, form, optimize=True, quality=90)  # PNG knows the one, and WebP the other
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
