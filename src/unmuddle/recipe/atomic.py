"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import Tensor

from unmuddle.recipe.errors import UsageError

PARTIAL = ".partial-"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then put it in the place of `path` in one step.

    Raises:
        OSError: the file cannot be written, as on a full disk; an earlier one is left as it was.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path}: cannot be written: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_tensors(
    path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole. A killed `save_file` would leave a file of its own."""
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_whole(path, lambda file: file.write_bytes(safetensors.torch.save(state, header)))


def make_folder(option: str, path: Path) -> Path:
    """Create a folder unless it exists; return it.

    Raises:
        UsageError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be made: {error.strerror}") from error
    return path
