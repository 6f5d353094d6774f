"""Which laws public losses keep, and which laws kill which mutants: the tables of the docs.

`--write` puts them into docs/pages/laws.md.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import lightly.loss
import pytorch_metric_learning.losses as metric_losses
import timm.loss
import torch
import torch.distributed as dist
import torchvision
from monai.losses import DiceLoss
from open_clip.loss import ClipLoss, SigLipLoss
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor

from benchmarks.pages import write_section
from unmuddle import SupConLoss
from unmuddle.testing import LAWS, Batch, Law, Loss, NotApplicableError, Result, check_loss, try_law
from unmuddle.testing.examples import STRUCTURES
from unmuddle.testing.loss import Kind

PAGE = "laws.md"
SUPERVISED: tuple[Kind, ...] = ("pairwise", "normalised", "supervised")
# Their rows have roles.
ROLES = frozenset({"permutation", "permuted_gradient"})
# The same ones whatever is installed; small ones first.
BATCHES = [
    Batch(n, dim, min(classes, n), structure, seed)
    for seed, (n, dim, classes, structure) in enumerate(
        itertools.product((2, 3, 5, 8), (1, 3), (1, 2, 9), STRUCTURES)
    )
]


class Peer(NamedTuple):
    """A public loss, what it is meant to be, and laws that make no sense for it."""

    name: str
    fn: Callable[..., Tensor]
    kinds: tuple[Kind, ...]
    not_asked: frozenset[str] = frozenset()


def in_two_views(features: Tensor, _: Tensor) -> Tensor:
    """Lightly's NTXentLoss of the first and the second half of the rows; labels play no part."""
    half = len(features) // 2
    if not half:
        raise NotApplicableError
    return lightly.loss.NTXentLoss()(features[:half], features[half : 2 * half])


def in_triplets(features: Tensor, _: Tensor) -> Tensor:
    """Torch's TripletMarginLoss of thirds of the rows; labels play no part."""
    third = len(features) // 3
    if not third:
        raise NotApplicableError
    parts = [features[i * third : (i + 1) * third] for i in range(3)]
    return torch.nn.TripletMarginLoss()(*parts)


def siglip(features: Tensor, _: Tensor) -> Tensor:
    """open_clip's SigLipLoss of the first and the second half of the rows, of unit length."""
    half = len(features) // 2
    if not half:
        raise NotApplicableError
    rows = torch.nn.functional.normalize(features, eps=1e-30)
    return SigLipLoss()(rows[:half], rows[half : 2 * half], 10.0, -10.0)


def sigmoid_focal(scores: Tensor, labels: Tensor) -> Tensor:
    """Torchvision's sigmoid_focal_loss, mean over samples and classes."""
    targets = torch.nn.functional.one_hot(labels, scores.shape[1]).to(scores)
    return torchvision.ops.sigmoid_focal_loss(scores, targets, reduction="mean")


def dice(probabilities: Tensor, masks: Tensor) -> Tensor:
    """MONAI's DiceLoss of one image."""
    return DiceLoss()(probabilities.reshape(1, 1, -1), masks.reshape(1, 1, -1))


HINGE: tuple[Kind, ...] = (*SUPERVISED, "hinge")
PEERS = (
    Peer("unmuddle SupCon", SupConLoss(), (*SUPERVISED, "contrastive", "soft", "views")),
    Peer("metric-learning SupCon", metric_losses.SupConLoss(), (*SUPERVISED, "contrastive")),
    Peer("metric-learning NTXent", metric_losses.NTXentLoss(), SUPERVISED),
    Peer("metric-learning TripletMargin", metric_losses.TripletMarginLoss(), HINGE),
    Peer("metric-learning MultiSimilarity", metric_losses.MultiSimilarityLoss(), SUPERVISED),
    Peer("lightly NTXent", in_two_views, ("pairwise", "normalised"), ROLES),
    Peer("torch TripletMargin", in_triplets, ("pairwise",), ROLES),
    Peer(
        "torch CrossEntropy",
        torch.nn.CrossEntropyLoss(),
        ("mean", "cross_entropy", "proper", "certain"),
    ),
    Peer("timm LabelSmoothing", timm.loss.LabelSmoothingCrossEntropy(), ("mean", "cross_entropy")),
    Peer("torchvision sigmoid focal", sigmoid_focal, ("mean", "certain")),
    Peer("MONAI Dice", dice, ("overlap",)),
    Peer("open_clip SigLIP", siglip, ("pairwise", "normalised", "linear"), ROLES),
)
NON_ZERO = (
    "A consequence of a convention: the mean is over the losses that are not 0 "
    "(`AvgNonZeroReducer`), and rounding decides which are exactly 0."
)
NO_NEGATIVES = "A convention: a batch without negatives has the loss 0."
ADDED = (
    "A convention: 1e-6 is added to every entry of a difference before its norm is taken, which "
    "keeps the gradient finite where two rows are equal, and is not the same in every direction."
)
VERDICTS = {
    ("metric-learning SupCon", "equal_rows"): NO_NEGATIVES,
    ("metric-learning SupCon", "lower_bound"): NO_NEGATIVES,
    ("metric-learning SupCon", "single_precision"): NON_ZERO,
    ("metric-learning SupCon", "extreme_lengths"): NON_ZERO,
    ("metric-learning TripletMargin", "nan_is_not_hidden"): (
        "Worth knowing: comparing with NaN is false, so its triplets count as none that violate "
        "the margin, and the loss of the others hides it."
    ),
    ("open_clip SigLIP", "linear_memory"): (
        "It builds the matrix of all pairs of a process. Only pairs of different processes are "
        "taken in parts."
    ),
    ("torch TripletMargin", "rotation"): ADDED,
    ("torch TripletMargin", "padding"): ADDED,
    ("torch TripletMargin", "no_torque"): ADDED,
}


def in_group() -> tuple[int, int]:
    """Rank of this process, and number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def two_views(features: Tensor) -> tuple[Tensor, Tensor]:
    """Two views of each row, of unit length."""
    scale = torch.arange(1, features.shape[1] + 1, dtype=features.dtype)
    normalize = torch.nn.functional.normalize
    return normalize(features), normalize(features.flip(1) * scale)


def gathered_ntxent(features: Tensor, _: Tensor) -> Tensor:
    """Lightly's NTXentLoss(gather_distributed=True)."""
    return lightly.loss.NTXentLoss(gather_distributed=in_group()[1] > 1)(*two_views(features))


def wrapped(features: Tensor, labels: Tensor, *, efficient: bool) -> Tensor:
    """metric-learning's SupConLoss in its DistributedLossWrapper."""
    loss = metric_losses.SupConLoss(temperature=0.1)
    if in_group()[1] > 1:
        loss = DistributedLossWrapper(loss, efficient=efficient)
    return loss(features, labels)


def clip(features: Tensor, _: Tensor, *, local: bool, with_grad: bool) -> Tensor:
    """open_clip's ClipLoss."""
    rank, size = in_group()
    loss = ClipLoss(local_loss=local, gather_with_grad=with_grad, rank=rank, world_size=size)
    return loss(*two_views(features), torch.tensor(10.0, dtype=features.dtype))


def exchanged_siglip(features: Tensor, _: Tensor) -> Tensor:
    """open_clip's SigLipLoss, which exchanges rows with the neighbours."""
    rank, size = in_group()
    return SigLipLoss(rank=rank, world_size=size)(*two_views(features), 10.0, -10.0)


GATHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unmuddle SupCon, `gather=True`": SupConLoss(0.1, gather=True),
    "lightly NTXent, `gather_distributed=True`": gathered_ntxent,
    "metric-learning SupCon, wrapped": partial(wrapped, efficient=False),
    "metric-learning SupCon, wrapped, `efficient=True`": partial(wrapped, efficient=True),
    "open_clip Clip": partial(clip, local=False, with_grad=False),
    "open_clip Clip, `gather_with_grad`": partial(clip, local=False, with_grad=True),
    "open_clip Clip, `local_loss`": partial(clip, local=True, with_grad=False),
    "open_clip Clip, `local_loss, gather_with_grad`": partial(clip, local=True, with_grad=True),
    "open_clip SigLIP": exchanged_siglip,
}


def public_gathers() -> str:
    """A row a loss that gathers, and what became of its gradient in two processes."""
    names = ("equal_shares", "unequal_shares", "empty_share")
    lines = ["| loss | " + " | ".join(f"`{name}`" for name in names) + " |", "|---" * 4 + "|"]
    for loss, fn in GATHERS.items():
        cells: list[str] = []
        for result in check_loss(fn, kinds=(), laws=names, processes=2).results:
            stops = result.error is not None
            told = "stops or waits" if stops else f"no: {result.numbers}"
            cells.append("yes" if result.status == "passed" else told)
        lines.append(f"| {loss} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tries(law: Law, loss: Loss) -> list[Result]:
    """The law on one batch after the other, until it is broken."""
    results: list[Result] = []
    for batch in BATCHES if law.applies(loss) else ():
        results.append(try_law(law, loss.copy(), batch))
        if results[-1].status == "failed":
            break
    return results


def public_losses() -> str:
    """A row a law, a column a loss; then what was found where a law is broken, and a verdict."""
    lines = ["| law | " + " | ".join(peer.name for peer in PEERS) + " |"]
    lines.append("|---" * (1 + len(PEERS)) + "|")
    losses = {peer.name: Loss(peer.fn, peer.kinds) for peer in PEERS}
    notes: list[str] = []
    broken: set[tuple[str, str]] = set()
    for name, law in LAWS.items():
        cells: list[str] = []
        for peer in PEERS:
            tried = [] if name in peer.not_asked else tries(law, losses[peer.name])
            result = next((result for result in tried if result.status == "failed"), None)
            if result is None:
                cells.append("yes" if any(r.status == "passed" for r in tried) else "")
            else:
                verdict = VERDICTS.get((peer.name, name), "NO VERDICT YET.")
                broken.add((peer.name, name))
                notes.append(
                    f"{len(notes) + 1}. {peer.name}, `{name}`: {result.numbers} "
                    f"at `{result.batch}`. {verdict}"
                )
                cells.append(f"no ({len(notes)})")
        if any(cells):
            lines.append(f"| `{law.name}` | " + " | ".join(cells) + " |")
    if VERDICTS.keys() != broken:
        print("\n".join(notes), file=sys.stderr)
        raise RuntimeError(f"verdicts: {VERDICTS.keys() ^ broken} are missing or no longer broken")
    return "\n".join([*lines, "", *notes])


def all_laws() -> str:
    """A row a law: who it is about, what it says, the fault of its mutant, and who kills that."""
    from tests.helpers.mutants import MUTANTS

    lines = [
        "| law | of losses that | statement | its mutant | killed by as well |",
        "|---" * 5 + "|",
    ]
    for name, law in LAWS.items():
        mutant = MUTANTS[name]
        loss = Loss(mutant.fn, mutant.kinds)
        if mutant.processes is not None:
            loss = loss.in_processes(mutant.processes)
        killers = {
            killer
            for killer, other in LAWS.items()
            if any(result.status == "failed" for result in tries(other, loss))
        }
        if name not in killers:
            raise RuntimeError(f"{name} does not kill its mutant")
        others = ", ".join(f"`{killer}`" for killer in LAWS if killer in killers - {name})
        needs = ", ".join(sorted(law.needs)) or "any"
        statement = law.statement.replace("|", "\\|")
        lines.append(f"| `{name}` | {needs} | {statement} | {mutant.fault} | {others} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    a = parser.parse_args()
    for make in (public_losses, public_gathers, all_laws):
        found = make()
        print(found, flush=True)
        if a.write:
            write_section(PAGE, make.__name__, found)


if __name__ == "__main__":
    main()
