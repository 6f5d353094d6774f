"""Image files: decoding, and a check of all of them before training starts."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from unmuddle.recipes.errors import UsageError

SHOWN = 20  # names shown of each kind of problem
IN_MEMORY = 2**29  # bytes of decoded images that are kept, instead of decoding anew each epoch


Box = tuple[int, int, int, int]


class ImageFiles:
    """Item i is the decoded file i, `(3, size, size)` uint8.

    Args:
        paths: the files.
        size: pixels a side.
        boxes: what to cut out of each: left, top, right, bottom in pixels.
        digests: equal for images of equal pixels; `read_images` finds them.
        decoded: the images themselves, where they are kept.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        boxes: Sequence[Box] | None = None,
        digests: Sequence[bytes] = (),
        decoded: Tensor | None = None,
    ) -> None:
        self.paths = paths
        self.size = size
        self.boxes = boxes
        self.digests = digests
        self.decoded = decoded

    def __getitem__(self, index: int) -> Tensor:
        if self.decoded is not None:
            return self.decoded[index]
        with Image.open(self.paths[index]) as image:
            rgb = _cut(image, self.boxes[index] if self.boxes else None)
        return torch.from_numpy(_scaled(rgb, self.size)).permute(2, 0, 1)

    def subset(self, ids: Tensor) -> "ImageFiles":
        """Some of them."""
        chosen = ids.tolist()
        return ImageFiles(
            [self.paths[i] for i in chosen],
            self.size,
            [self.boxes[i] for i in chosen] if self.boxes else None,
            [self.digests[i] for i in chosen],
            None if self.decoded is None else self.decoded[ids],
        )


def find_images(folder: Path) -> list[Path]:
    """Every image file below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)


def read_images(
    paths: Sequence[Path], size: int, problems: "Problems", boxes: Sequence[Box] | None = None
) -> ImageFiles:
    """Decode every file once, keep small sets, and note files that are missing or do not decode."""
    keeps = len(paths) * 3 * size**2 <= IN_MEMORY
    pixels = np.zeros((len(paths) if keeps else 0, size, size, 3), np.uint8)
    digests: list[bytes] = []

    def read(index: int) -> tuple[bytes, str | None]:
        kept = pixels[index] if keeps else None
        return _read(paths[index], boxes[index] if boxes else None, kept)

    with ThreadPoolExecutor() as pool:
        # On small images threads would mostly wait for one another.
        found = (map if keeps else pool.map)(read, range(len(paths)))
        for path, (digest, problem) in zip(paths, found, strict=True):
            digests.append(digest)
            if problem:
                problems.add(problem, str(path))
    decoded = torch.from_numpy(pixels).permute(0, 3, 1, 2) if keeps else None
    return ImageFiles(paths, size, boxes, digests, decoded)


class Problems:
    """Collects everything wrong with a data set, to be told in one error."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, where: str) -> None:
        """Note that `where` has a problem of this kind."""
        self._found[kind].append(where)

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


def _cut(image: Image.Image, box: Box | None) -> Image.Image:
    rgb = image.convert("RGB")
    return rgb if box is None else rgb.crop(box)


def _scaled(rgb: Image.Image, size: int) -> np.ndarray:
    """`(size, size, 3)` uint8."""
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(rgb)


def _read(path: Path, box: Box | None, kept: np.ndarray | None) -> tuple[bytes, str | None]:
    """Digest and problem of a file; its image goes into `kept`."""
    try:
        if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
            return b"", "name that is not UTF-8"
        if not path.is_file():
            return b"", "missing image"
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                return b"", "image of more than 8 bits a channel"
            rgb = _cut(image, box)
            if kept is not None:
                kept[:] = _scaled(rgb, len(kept))
            return digest(np.array(rgb)), None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return b"", "unreadable or truncated image"


def digest(pixels: np.ndarray) -> bytes:
    """Sixteen bytes that differ where shape or pixels do."""
    return blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).digest()
