"""Finding and decoding image files. Each is decoded once before training starts."""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unmuddle.recipe.data.types import LabeledImages, digest
from unmuddle.recipe.errors import UsageError

SHOWN = 20  # names shown per kind of problem
IN_MEMORY = 2**29  # bytes; larger data sets are decoded anew in each epoch
# Formats that Pillow opens but does not decode by itself.
_NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}

# Pillow's raw modes with 16 bits per channel, of which it would read only the upper 8 bits.
_HIGH_DEPTH = re.compile(r";16[BLN]")

Box = tuple[int, int, int, int]


class Problems:
    """Problems of a data set, and the items that are left out of it.

    All problems are raised together in one error.

    Args:
        skip_unreadable: whether to leave out unreadable images instead of raising an error.

    Attributes:
        left_out: places of the items that are left out, by kind.
    """

    def __init__(self, *, skip_unreadable: bool = False) -> None:
        self.skip_unreadable = skip_unreadable
        self.left_out: dict[str, list[str]] = defaultdict(list)
        self._found: dict[str, list[str]] = defaultdict(list)
        self._can_skip = False

    def add(self, kind: str, where: str) -> None:
        """Record a problem of this kind at `where`."""
        self._found[kind].append(where)

    def add_unreadable(self, kind: str, where: str) -> None:
        """Record an unreadable image. It is a problem unless such images are skipped."""
        (self.left_out if self.skip_unreadable else self._found)[kind].append(_printable(where))
        self._can_skip = not self.skip_unreadable

    def leave_out(self, kind: str, where: str) -> None:
        """Record that `where` is left out of the data set."""
        self.left_out[kind].append(_printable(where))

    def raise_if_any(self, root: Path | str) -> None:
        """Raise one UsageError that lists all problems of `root`, if there are any."""
        if not self._found:
            return
        hint = "; --skip_unreadable leaves out unreadable images" if self._can_skip else ""
        raise UsageError("\n".join([f"{root}: there are problems{hint}", *listing(self._found)]))


def _printable(place: str) -> str:
    """Escape the bytes of a file name that are not UTF-8."""
    return place.encode("utf-8", "backslashreplace").decode()


def listing(found: Mapping[str, Sequence[str]], shown: int = SHOWN) -> list[str]:
    """Return lines with each kind, its count and its first places."""
    lines: list[str] = []
    for kind, places in found.items():
        lines.append(f"  {kind}: {len(places)}")
        lines += [f"    {place}" for place in places[:shown]]
        if len(places) > shown:
            lines.append(f"    ... and {len(places) - shown} more")
    return lines


def tell_left_out(left_out: Mapping[str, Sequence[str]]) -> None:
    """Print the items that are left out to stderr, if there are any."""
    if left_out:
        print("\n".join(["left out:", *listing(left_out)]), file=sys.stderr)


@dataclass
class ImageFiles:
    """Images decoded from files; item i is `(3, size, size)` uint8.

    Attributes:
        paths: image files.
        size: side length in pixels.
        boxes: crop box of each image: left, top, right, bottom in pixels.
    """

    paths: Sequence[Path]
    size: int
    boxes: Sequence[Box] | None = None

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            rgb = _decode(image, self.boxes[index] if self.boxes else None)
        return torch.from_numpy(_scaled(rgb, self.size)).permute(2, 0, 1)

    def subset(self, ids: Tensor) -> "ImageFiles":
        """Return a subset of the images."""
        chosen = ids.tolist()
        boxes = [self.boxes[i] for i in chosen] if self.boxes else None
        return ImageFiles([self.paths[i] for i in chosen], self.size, boxes)


def find_images(folder: Path, problems: Problems) -> list[Path]:
    """List the image files in a folder and its subfolders, sorted by path.

    A file is an image if Pillow reads files with its suffix. If Pillow does not know the suffix,
    the content of the file decides. All other files are recorded as left out.
    """
    images: list[Path] = []
    for path in _files(folder, problems):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            problems.leave_out("hidden file", str(path))
        elif path.suffix.lower() in _suffixes() or _has_pixels(path):
            images.append(path)
        else:
            problems.leave_out("file that is not an image", str(path))
    return images


def typical_side(paths: Sequence[Path], most: int = 200) -> int:
    """Return the median longer side of evenly spaced images, in pixels and at least 8."""
    sides: list[int] = []
    for path in paths[:: max(1, len(paths) // most)]:
        with suppress(Exception), Image.open(path) as image:  # it can fail in any way
            sides.append(max(image.size))
    return max(8, int(median(sides))) if sides else 8


def _files(folder: Path, problems: Problems) -> list[Path]:
    """List the files in a folder, its subfolders and linked folders, sorted by path."""
    files: list[Path] = []
    visited: set[str] = set()

    def note(error: OSError) -> None:
        problems.add("folder that is not readable", str(error.filename))

    for root, folders, names in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(root)
        folders.sort()  # then every machine follows the same link
        if real in visited:
            problems.leave_out("link to a folder that is read already", root)
            folders.clear()
            continue
        visited.add(real)
        files += [Path(root, name) for name in names]
    return sorted(files)


@cache
def _suffixes() -> frozenset[str]:
    formats = Image.registered_extensions()
    readable = Image.OPEN.keys() - _NO_PIXELS
    return frozenset(suffix for suffix, name in formats.items() if name in readable)


@cache
def _signed_formats() -> tuple[str, ...]:
    Image.init()
    formats = Image.OPEN.items()
    return tuple(name for name, (_, accept) in formats if accept and name not in _NO_PIXELS)


def _has_pixels(path: Path) -> bool:
    """Return whether the content is an image of a format that has a signature."""
    if not path.is_file():  # opening a pipe would wait for a writer
        return False
    try:
        with Image.open(path, formats=_signed_formats()):
            return True
    except Exception:  # reading an arbitrary file can fail in any way
        return False


def read_labeled(
    where: Path | str,
    paths: Sequence[Path],
    labels: Sequence[int],
    size: int,
    problems: Problems,
    *,
    boxes: Sequence[Box] | None = None,
    true_labels: Tensor | None = None,
    votes: Tensor | None = None,
) -> LabeledImages:
    """Decode every file once, and keep the images of small data sets in memory.

    Args:
        where: place of the files for the message if there are none.
        paths: image files.
        labels: n labels.
        size: side length in pixels.
        problems: records unreadable files, which are not among the returned images.
        boxes: crop box of each image, see `ImageFiles`.
        true_labels: `(n,)`, see `LabeledImages`.
        votes: `(n, K)`, see `LabeledImages`.
    """
    keeps = len(paths) * 3 * size**2 <= IN_MEMORY
    pixels = np.zeros((len(paths) if keeps else 0, size, size, 3), np.uint8)
    readable: list[int] = []
    digests: list[bytes] = []

    def read(index: int) -> _Read:
        kept = pixels[index] if keeps else None
        return _read(paths[index], boxes[index] if boxes else None, kept)

    with ThreadPoolExecutor() as pool:
        # With small images, threads would mostly wait for each other.
        found = (map if keeps else pool.map)(read, range(len(paths)))
        for index, (path, image) in enumerate(zip(paths, found, strict=True)):
            digests.append(image.digest)
            if image.problem:
                problems.add_unreadable(image.problem, str(path))
            else:
                readable.append(index)
            if image.has_frames:
                problems.leave_out("frames after the first one of an image", str(path))
    if not readable:
        problems.add("no images", str(where))
    decoded = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    images, names = decoded if keeps else ImageFiles(paths, size, boxes), [*map(str, paths)]
    given = torch.tensor(labels, dtype=torch.int64)
    data = LabeledImages(images, given, true_labels, votes, names, digests=digests)
    return data if len(readable) == len(paths) else data.subset(torch.tensor(readable).long())


def _decode(image: Image.Image, box: Box | None) -> Image.Image:
    """Apply the EXIF orientation, convert to RGB on a white background, and crop."""
    image.load()
    with suppress(Exception):  # ignore an EXIF block that cannot be parsed
        ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
    rgb = image.convert("RGB")
    return rgb if box is None else rgb.crop(box)


def _scaled(rgb: Image.Image, size: int) -> np.ndarray:
    """Return the pixels `(size, size, 3)` uint8."""
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(rgb)


class _Read(NamedTuple):
    digest: bytes = b""
    problem: str = ""
    has_frames: bool = False  # more than one; the first is the image


def _read(path: Path, box: Box | None, kept: np.ndarray | None) -> _Read:
    """Read a file, and store its image in `kept`."""
    try:
        if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
            return _Read(problem="name that is not UTF-8")
        if not path.is_file():
            return _Read(problem="missing image")
        with Image.open(path) as image:
            if image.mode[0] in "IF" or _HIGH_DEPTH.search(str(image.tile)):
                return _Read(problem="image of more than 8 bits a channel")
            # Other frames of a camera's MPO are views of the same scene, those of a PSD its layers.
            has_frames = image.format not in ("MPO", "PSD") and getattr(image, "n_frames", 1) > 1
            rgb = _decode(image, box)
            if kept is not None:
                kept[:] = _scaled(rgb, len(kept))
            return _Read(digest(np.array(rgb)), has_frames=has_frames)
    except Exception:  # reading an arbitrary file can fail in any way
        return _Read(problem="unreadable or truncated image")
