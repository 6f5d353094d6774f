"""Atomic file writes."""

import os
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import Tensor

PARTIAL = ".partial-"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` fills a temporary file, which then replaces `path`.

    Raises:
        OSError: the file cannot be written, for example on a full disk. An existing file is kept.
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
    """Write a text file atomically."""
    write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically.

    A killed `safetensors.torch.save_file` would leave its own temporary file behind.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_whole(path, lambda file: file.write_bytes(safetensors.torch.save(state)))
