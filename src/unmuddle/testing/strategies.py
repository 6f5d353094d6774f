"""Hypothesis strategies that draw a structure and a seed, not individual numbers.

The `repr` of a drawn value is code that recreates it. Values shrink to small sizes.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

try:
    from hypothesis import HealthCheck, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "unmuddle.testing.strategies needs hypothesis: pip install 'unmuddle[testing]'"
    ) from error

from unmuddle.testing.examples import STRUCTURES, Batch, ContrastiveBatch, NoisyLabels, Structure

Profile = Literal["fast", "ci", "thorough"]
_EXAMPLES: dict[Profile, int] = {"fast": 50, "ci": 200, "thorough": 2000}


def profile(name: str | None = None) -> settings:
    """Return the Hypothesis settings of a profile.

    `None` selects the profile that the environment variable `UNMUDDLE_HYPOTHESIS_PROFILE` names, by
    default `"fast"`.

    | name | examples |
    |---|---|
    | `"fast"` | 50 |
    | `"ci"` | 200 |
    | `"thorough"` | 2,000 |

    All profiles draw the same examples in every run, and none sets a deadline.

    Raises:
        ValueError: the name is unknown.
    """
    chosen = name or os.environ.get("UNMUDDLE_HYPOTHESIS_PROFILE") or "fast"
    if chosen not in _EXAMPLES:
        raise ValueError(f"profile: expected one of {tuple(_EXAMPLES)}, got {chosen!r}")
    return settings(
        max_examples=_EXAMPLES[chosen],
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def load_profile(name: str | None = None) -> None:
    """Set `profile(name)` as the default settings of all Hypothesis tests."""
    settings.register_profile("unmuddle", profile(name))
    settings.load_profile("unmuddle")


def batches(
    *,
    n: tuple[int, int] = (2, 8),
    dim: tuple[int, int] = (1, 6),
    structures: Sequence[Structure] = STRUCTURES,
) -> st.SearchStrategy[Batch]:
    """Return a strategy for `Batch`: embeddings, and labels from all equal to all different.

    Args:
        n: smallest and largest number of rows.
        dim: smallest and largest number of features.
        structures: structures to draw from; see `Batch`.
    """
    return st.integers(*n).flatmap(
        lambda rows: st.builds(
            Batch,
            n=st.just(rows),
            dim=st.integers(*dim),
            classes=st.integers(1, rows),
            structure=st.sampled_from(structures),
            seed=_seeds(),
        )
    )


def contrastive_batches(
    *, n: tuple[int, int] = (2, 6), views: tuple[int, int] = (1, 3), keys: tuple[int, int] = (0, 4)
) -> st.SearchStrategy[ContrastiveBatch]:
    """Return a strategy for `ContrastiveBatch`.

    A batch has one or more views, labels of all kinds, a mask, weights and keys.
    """
    return st.builds(
        ContrastiveBatch, batch=batches(n=n), views=st.integers(*views), keys=st.integers(*keys)
    )


def embeddings(
    *, n: tuple[int, int] = (1, 8), dim: tuple[int, int] = (1, 6), extreme: bool = True
) -> st.SearchStrategy[Tensor]:
    """Return a strategy for `(N, D)` embeddings of every structure, in fp64.

    Args:
        n: smallest and largest number of rows.
        dim: smallest and largest number of features.
        extreme: some embeddings contain a row of zeros, or are scaled by 1e-8 or 1e8.
    """

    def changed(batch: Batch, zero: bool, scale: float) -> Tensor:
        x = batch.features * scale
        if zero:
            x[0] = 0
        return x

    return st.builds(
        changed,
        batches(n=n, dim=dim),
        st.booleans() if extreme else st.just(False),
        st.sampled_from((1.0, 1e-8, 1e8) if extreme else (1.0,)),
    )


def labels(
    n: int,
    *,
    kind: Literal["int", "soft", "multi-hot", "ignored", "large"] = "int",
) -> st.SearchStrategy[Tensor]:
    """Return a strategy for the labels of n samples.

    Args:
        n: number of samples.
        kind: `"int"`: `(n,)` classes; `"ignored"`: some of them -100; `"large"`: near 2^62;
            `"soft"`: `(n, C)` distributions; `"multi-hot"`: `(n, C)` of 0 and 1.
    """
    names = {
        "int": "labels",
        "large": "labels",
        "soft": "soft_labels",
        "multi-hot": "multi_hot_labels",
        "ignored": "ignored_labels",
    }
    if kind not in names:
        raise ValueError(f"kind: expected one of {tuple(names)}, got {kind!r}")
    offset = 2**62 if kind == "large" else 0
    return batches(n=(n, n)).map(
        lambda batch: getattr(ContrastiveBatch(batch), names[kind]) + offset
    )


def temperatures(least: float = 0.01, most: float = 100.0) -> st.SearchStrategy[float]:
    """Return a strategy for temperatures, about as many below 1 as above; it shrinks to 1."""
    if not 0 < least <= most < math.inf:
        raise ValueError(f"temperatures: expected 0 < least <= most, got {least} and {most}")
    known = (1.0, 0.07, 0.1, 0.5, 2.0, 10.0, 0.02, 50.0, least, most)
    return st.sampled_from([tau for tau in known if least <= tau <= most])


def feature_maps(
    *,
    n: tuple[int, int] = (1, 4),
    channels: Sequence[int] = (4, 8, 12, 16),
    size: tuple[int, int] = (3, 9),
) -> st.SearchStrategy[Tensor]:
    """Return a strategy for feature maps `(N, C, H, W)` of any shape, in fp64.

    Negative values are clamped to -0.1. In some of the maps, the first channel is zero.
    """

    def made(rows: int, depth: int, height: int, width: int, empty: bool, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, depth, height, width, generator=g, dtype=torch.float64).clamp(-0.1)
        if empty:
            x[:, 0] = 0
        return x

    sides = st.integers(*size)
    return st.builds(
        made, st.integers(*n), st.sampled_from(channels), sides, sides, st.booleans(), _seeds()
    )


def noisy_labels(
    *, n: tuple[int, int] = (2, 60), classes: tuple[int, int] = (2, 6)
) -> st.SearchStrategy[NoisyLabels]:
    """Return a strategy for `NoisyLabels`: labels with a known error rate, and predictions."""
    return st.builds(
        NoisyLabels,
        n=st.integers(*n),
        classes=st.integers(*classes),
        rate=st.sampled_from((0.0, 0.1, 0.3, 0.5, 1.0)),
        confidence=st.sampled_from((3.0, 0.0, 1.0, 10.0)),
        seed=_seeds(),
    )


def ledger_histories(
    samples: int, classes: int, *, steps: int = 6
) -> st.SearchStrategy[list[tuple[str, dict[str, Any]]]]:
    """Return a strategy for the calls of a `LabelLedger`: `[(method, arguments), ...]`.

    Replay a history with `for method, arguments in history: getattr(ledger, method)(**arguments)`.
    """
    ids = st.lists(st.integers(0, samples - 1), unique=True, max_size=samples)

    def change(chosen: list[int]) -> st.SearchStrategy[dict[str, Any]]:
        return st.lists(
            st.integers(0, classes - 1), min_size=len(chosen), max_size=len(chosen)
        ).map(
            lambda new: {
                "ids": torch.tensor(chosen, dtype=torch.int64),
                "labels": torch.tensor(new, dtype=torch.int64),
            }
        )

    changes, epochs = ids.flatmap(change), st.integers(1, 4)
    record = st.tuples(changes, epochs).map(
        lambda drawn: ("record", drawn[0] | {"epoch": drawn[1], "rule": "drawn"})
    )
    decide = changes.map(lambda drawn: ("decide", drawn))
    by_ids = ids.map(lambda drawn: ("revert", {"ids": torch.tensor(drawn, dtype=torch.int64)}))
    by_epoch = epochs.map(lambda epoch: ("revert", {"epoch": epoch}))
    return st.lists(st.one_of(record, decide, by_ids, by_epoch), max_size=steps)


def _seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 999)
