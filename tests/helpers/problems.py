"""Random problems of every kind of supervision, and the loss of one as a scalar loop."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

KINDS = ["int", "soft", "multi-hot", "mask", "views", "keys", "soft keys", "unlabelled keys",
         "mask keys"]  # fmt: skip


class Drawn(NamedTuple):
    """`supcon_loss(features, **arguments)`, and the same for the scalar loop.

    `rows` `(T, D)` are the contrast set, `weights` `(N, T)` those of positives, `included` `(T,)`,
    `terms` `(T,)` the weights of the denominator.
    """

    features: Tensor
    arguments: dict[str, Any]
    rows: Tensor
    weights: Tensor
    included: Tensor
    terms: Tensor


def draw(
    kind: str,
    n: int,
    dim: int,
    seed: int,
    dtype: torch.dtype = torch.float64,
    *,
    weighted: bool = False,
) -> Drawn:
    """Draw about n anchors; every third row is ignored where there are labels.

    `weighted`: rows have weights in the denominator, some of them 0.
    """
    g = torch.Generator().manual_seed(seed)
    views = 2 if kind in ("mask", "views", "unlabelled keys", "mask keys") else 1
    size, m = max(n // views, 1), 5 if "keys" in kind else 0
    features = torch.randn(size, views, dim, generator=g, dtype=dtype)
    keys = torch.randn(m, dim, generator=g, dtype=dtype)
    arguments: dict[str, Any] = {"keys": keys} if m else {}
    included = torch.ones(size * views + m, dtype=torch.bool)

    classes = torch.randint(3, (size + m,), generator=g)
    member = torch.nn.functional.one_hot(classes, 3).to(dtype)
    if kind.startswith("soft"):
        member = torch.rand(size + m, 3, generator=g, dtype=dtype) * (member + 0.2).round()
    if kind == "multi-hot":
        member = (torch.rand(size + m, 3, generator=g) < 0.4).to(dtype)
    if kind in ("int", "keys"):
        classes[::3] = -100
        arguments["labels"] = classes[:size]
    elif kind in ("soft", "multi-hot", "soft keys"):
        member[::3] = -100
        arguments["labels"] = member[:size]
    if m and "labels" in arguments:
        arguments["key_labels"] = classes[size:] if kind == "keys" else member[size:]
    if "labels" in arguments:
        included[::3] = False
        member = member * included[:, None]
        weights = member[:size] @ member.T
    elif kind.startswith("mask"):
        mask = torch.rand(size, size, generator=g, dtype=dtype)
        mask = mask * (torch.rand(size, size, generator=g) < 0.5)
        arguments["mask"] = mask
        weights = torch.nn.functional.pad(
            mask.repeat_interleave(2, 0).repeat_interleave(2, 1), (0, m)
        )
    else:
        sample = torch.arange(size).repeat_interleave(2)
        weights = torch.zeros(len(sample), len(sample) + m, dtype=dtype)
        weights[:, : len(sample)] = sample[:, None] == sample
        if m:
            arguments["key_labels"] = torch.tensor([3, -100, 4, 5, -100])
            included[len(sample) :] = arguments["key_labels"] != -100
    rows = torch.cat([features.flatten(0, 1), keys])
    terms = torch.ones(len(rows), dtype=dtype)
    if weighted:
        of_samples, of_keys = (
            3 * torch.rand(k, generator=g, dtype=dtype) * (torch.rand(k, generator=g) < 0.8)
            for k in (size, m)
        )
        terms = torch.cat([of_samples.repeat_interleave(views), of_keys])
        arguments["denominator_weight"] = of_samples
        if m:
            arguments["key_weight"] = of_keys
    features = features if views > 1 else features[:, 0]
    return Drawn(features, arguments, rows, weights, included, terms)


def scalar_loop(
    drawn: Drawn, temperature: float, positives: str = "out", denominator: str = "all"
) -> Tensor:
    """Eq. 2 or 3, one pair at a time: `(N,)`."""
    rows = [row / max(math.sqrt(sum(v * v for v in row.tolist())), 1e-300) for row in drawn.rows]
    included, v, losses = drawn.included.tolist(), drawn.terms.tolist(), []
    for i in range(len(drawn.weights)):
        others = [j for j in range(len(rows)) if j != i and included[j]] if included[i] else []
        w = {j: drawn.weights[i, j].item() for j in others}
        contrast = [j for j in others if v[j] > 0 and (denominator == "all" or w[j] == 0)]
        total = sum(w.values())
        if total <= 0 or not contrast:
            losses.append(0.0)
            continue
        s = {j: (rows[i] @ rows[j]).item() / temperature for j in others}
        m = max(s.values())
        lse = m + math.log(sum(v[j] * math.exp(s[j] - m) for j in contrast))
        if positives == "out":
            numerator = sum(w[j] * s[j] for j in others) / total
        else:
            numerator = m + math.log(sum(w[j] * math.exp(s[j] - m) for j in others) / total)
        losses.append(lse - numerator)
    return torch.tensor(losses, dtype=torch.float64)
