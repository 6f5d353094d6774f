"""Image files: decoding, and a check of all of them before training starts."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmuddle.recipes.errors import UsageError

SHOWN = 20  # names shown of each kind of problem


class ImageFiles:
    """Item i is the decoded file i, `(3, size, size)` uint8."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = paths
        self.size = size

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            rgb = image.convert("RGB")
        if rgb.size != (self.size, self.size):
            rgb = rgb.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


class Problems:
    """Collects everything wrong with a data set, to be told in one error."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, where: str) -> None:
        """Note that `where` has a problem of this kind."""
        self._found[kind].append(where)

    def check_images(self, paths: Sequence[Path]) -> None:
        """Decode every file; note those that are missing or do not decode."""
        with ThreadPoolExecutor() as pool:
            for path, problem in zip(paths, pool.map(_image_problem, paths), strict=True):
                if problem:
                    self.add(problem, str(path))

    def raise_if_any(self, root: Path | str) -> None:
        """Raise one UsageError that lists all problems of `root`, if there is one."""
        if not self._found:
            return
        lines = [f"{root}: there are problems"]
        for kind, places in self._found.items():
            lines.append(f"  {kind}: {len(places)}")
            lines += [f"    {place}" for place in places[:SHOWN]]
            if len(places) > SHOWN:
                lines.append(f"    ... and {len(places) - SHOWN} more")
        raise UsageError("\n".join(lines))


def _image_problem(path: Path) -> str | None:
    try:
        if not path.is_file():
            return "missing image"
        with Image.open(path) as image:
            image.load()
            if image.mode[0] in "IF":
                return "image of more than 8 bits a channel"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "unreadable or truncated image"
    return None
