"""Laws of losses of the scores of classes, and of those that compare labels."""

import torch

from unmuddle.testing.examples import Batch
from unmuddle.testing.law import Finding, law, measured
from unmuddle.testing.laws.findings import same_value
from unmuddle.testing.loss import Loss, NotApplicable


@law("logits")
def renamed_scores(loss: Loss, batch: Batch) -> Finding:
    """Classes may be numbered in any order, if scores and labels both are."""
    order = torch.randperm(batch.dim, generator=batch.generator(27))
    x = torch.empty_like(batch.features)
    x[:, order] = batch.features
    return same_value(loss, batch, x, order[batch.labels % batch.dim])


@law("logits")
def informative_scores(loss: Loss, batch: Batch) -> Finding:
    """Scores that clearly favour the label cost less than scores that clearly favour another class.

    Otherwise training by the loss would not bring the labels out. Scores are about 4 for the
    favoured class and 0 for the others: a hinge loss is flat where the label leads by its margin.
    """
    if batch.dim < 2:
        raise NotApplicable
    of_label = 4 * torch.nn.functional.one_hot(batch.labels % batch.dim, batch.dim).double()
    x = 0.1 * batch.features.clamp(-3, 3)
    value, budget = measured(loss, loss.value, x + of_label, batch.labels)
    return Finding(value, "<", loss.value(x + of_label.roll(1, 1), batch.labels), budget)


@law("supervised")
def renaming(loss: Loss, batch: Batch) -> Finding:
    """The names of the classes do not matter: `L(x, f(y)) = L(x, y)` for every injective f.

    A label says which samples belong together.
    """
    names = torch.randperm(1000, generator=batch.generator(24))[: batch.classes]
    return same_value(loss, batch, batch.features, names[batch.labels])


@law("supervised")
def large_labels(loss: Loss, batch: Batch) -> Finding:
    """Labels may be any int64, such as hashes: near 2^62, and 2^32 apart.

    fp32 cannot tell the first apart, int32 the second.
    """
    names = torch.tensor([2**62, 2**62 + 2**32, 2**62 + 1])
    labels = names[batch.labels % 3] + batch.labels // 3 * 2
    return same_value(loss, batch, batch.features, labels)


@law("supervised")
def label_dtype(loss: Loss, batch: Batch) -> Finding:
    """int32 labels are as good as int64."""
    return same_value(loss, batch, batch.features, batch.labels.int())


@law("supervised")
def informative(loss: Loss, batch: Batch) -> Finding:
    """Labels that fit tight clusters cost less than labels that cut across them.

    Otherwise training by the loss would not bring classes together.
    """
    # Clusters are on coordinate axes and their opposites, so that no two coincide.
    if not 2 <= batch.classes <= min(batch.n / 2, 2 * batch.dim) or batch.dim < 2:
        raise NotApplicable
    axes = torch.cat([torch.eye(batch.dim), -torch.eye(batch.dim)]).double()
    members = torch.arange(batch.n) % batch.classes
    x = axes[members] + 0.01 * batch.features.clamp(-3, 3)
    across = torch.arange(batch.n) // batch.classes
    value, budget = measured(loss, loss.value, x, members)
    return Finding(value, "<", loss.value(x, across), budget)
