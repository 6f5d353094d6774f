"""HTML templates, and images for them."""

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

GENERATOR = "unmuddle report"


def render(template: str, **values: Any) -> str:
    """Render a template of this folder. Values are escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    text = files("unmuddle.report").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values, generator=GENERATOR)


def is_report(path: Path) -> bool:
    """Return whether a file is a page of this package, which may be overwritten."""
    try:
        with path.open(encoding="utf-8") as file:
            return f'content="{GENERATOR}"' in file.read(1000)
    except ValueError:
        return False


def png(pixels: np.ndarray, side: int | None = None) -> str:
    """Encode an image `(H, W, 3)` uint8 as a data URL for the `src` of an `<img>`."""
    image = Image.fromarray(pixels)
    if side is not None:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
