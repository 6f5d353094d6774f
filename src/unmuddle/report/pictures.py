"""Images for a page."""

import base64
import io

import numpy as np
from PIL import Image


def png(pixels: np.ndarray, side: int | None = None) -> str:
    """Image `(H, W, 3)` uint8 for the `src` of an `<img>`."""
    image = Image.fromarray(pixels)
    if side is not None:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
