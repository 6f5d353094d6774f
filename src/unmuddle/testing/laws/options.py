"""Laws for optional inputs of a loss, for the memory that it saves, and for modules."""

import copy

import torch
from torch import Tensor

from unmuddle.testing.examples import Batch, ContrastiveBatch
from unmuddle.testing.law import Finding, law, measured
from unmuddle.testing.laws.findings import need_positives, same_value
from unmuddle.testing.loss import Loss, NotApplicableError
from unmuddle.testing.tolerance import saved_bytes


@law("views", change="views in another order")
def order_of_views(loss: Loss, batch: Batch) -> Finding:
    """The order of the views of each sample does not matter."""
    more = ContrastiveBatch(batch, views=3)
    x, labels = more.features, more.labels
    order = torch.stack(
        [torch.randperm(3, generator=batch.generator(26 + i)) for i in range(batch.n)]
    )
    shuffled = x.gather(1, order[:, :, None].expand_as(x))
    return Finding(loss.value(shuffled, labels), "==", *measured(loss, loss.value, x, labels))


@law("views", change="views as rows")
def views_are_rows(loss: Loss, batch: Batch) -> Finding:
    """V views of B samples are B·V samples, whose labels repeat."""
    more = ContrastiveBatch(batch, views=2)
    x, labels = more.features, more.labels
    flat = loss.value(x.flatten(0, 1), labels.repeat_interleave(2))
    return Finding(flat, "==", *measured(loss, loss.value, x, labels))


@law("soft", change="labels as one-hot rows")
def one_hot(loss: Loss, batch: Batch) -> Finding:
    """One-hot memberships are integer labels."""
    hot = torch.nn.functional.one_hot(batch.labels, max(batch.classes, 2)).double()
    return same_value(loss, batch, batch.features, hot)


@law("soft", change="memberships times 2")
def scale_of_memberships(loss: Loss, batch: Batch) -> Finding:
    """Memberships twice as large are the same: positives are weighed by their share."""
    soft = ContrastiveBatch(batch).soft_labels
    x = batch.features
    return Finding(loss.value(x, 2 * soft), "==", *measured(loss, loss.value, x, soft))


@law("contrastive", "mask", change="the mask of equal labels")
def mask_of_labels(loss: Loss, batch: Batch) -> Finding:
    """The mask of equal labels is as good as the labels."""
    labels = batch.labels
    mask = (labels[:, None] == labels).double()
    x = batch.features
    found = loss(x, None, mask=mask).mean()
    return Finding(found, "==", *measured(loss, loss.value, x, labels))


@law("contrastive", "weight", change="all weights 0.3")
def equal_weights(loss: Loss, batch: Batch) -> Finding:
    """Equal weights change nothing."""
    x, labels = batch.features, batch.labels
    weight = torch.full((batch.n,), 0.3, dtype=x.dtype)
    return Finding(
        loss.value(x, labels, weight=weight), "==", *measured(loss, loss.value, x, labels)
    )


@law("contrastive", "weight")
def shared_weights(loss: Loss, batch: Batch) -> Finding:
    """Weights w and 1 - w share the loss out: weighted sums add up to the plain one.

    The weighted mean, times the sum of the weights of the anchors with a positive, is the weighted
    sum.
    """
    need_positives(batch)
    x, labels = batch.features, batch.labels
    share = ContrastiveBatch(batch).weight
    share = share / (1 + share.max())
    anchors = _anchors_with_positives(labels).double()
    parts = [loss.value(x, labels, weight=w) * (w * anchors).sum() for w in (share, 1 - share)]
    value, budget = measured(loss, loss.value, x, labels)
    return Finding(parts[0] + parts[1], "==", value * anchors.sum(), 4 * batch.n * budget)


@law("contrastive", "weight", "reduction", change="weights 0 and 1")
def zero_weight(loss: Loss, batch: Batch) -> Finding:
    """Anchors of weight 0 are not in the mean."""
    x, labels = batch.features, batch.labels
    weight = (torch.arange(batch.n) % 2).to(x)
    counted = _anchors_with_positives(labels) & (weight > 0)
    if not counted.any():
        raise NotApplicableError
    value, budget = measured(loss, loss.value, x, labels, weight=weight)
    return Finding(value, "==", loss(x, labels, reduction="none")[counted].mean(), budget)


@law("contrastive", "ignore_index", change="ignored samples left out")
def ignored_samples(loss: Loss, batch: Batch) -> Finding:
    """Ignored samples are as good as absent."""
    more = ContrastiveBatch(batch)
    x, labels = batch.features, more.ignored_labels
    kept = labels != -100
    value, budget = measured(loss, loss.value, x, labels, ignore_index=-100)
    return Finding(value, "==", loss.value(x[kept], labels[kept]), budget)


@law("contrastive", "reduction")
def reductions_agree(loss: Loss, batch: Batch) -> Finding:
    """`"sum"` is the sum of `"none"`, and `"mean"` their mean over the anchors that have one."""
    x, labels = batch.features, batch.labels
    each = loss(x, labels, reduction="none")
    anchors = _anchors_with_positives(labels).sum().clamp(min=1)
    mean, budget = measured(loss, loss.value, x, labels, reduction="mean")
    found = torch.stack([loss.value(x, labels, reduction="sum"), mean * anchors])
    return Finding(found, "==", each.sum(), batch.n * budget)


@law("contrastive", "keys", "key_labels", "contrast_mode", "views", change="second views as keys")
def keys_are_second_views(loss: Loss, batch: Batch) -> Finding:
    """Keys are rows that are contrasted with and are no anchors, as second views are.

    `L([x, k], contrast_mode="one") = L(x, keys=k)`: in both, the first views are the anchors.
    """
    x, k = ContrastiveBatch(batch).features.unbind(1)
    labels = batch.labels
    found = loss.value(x, labels, keys=k, key_labels=labels)
    both = torch.stack([x, k], 1)
    return Finding(found, "==", *measured(loss, loss.value, both, labels, contrast_mode="one"))


@law("linear", show="# compare unmuddle.testing.saved_bytes(loss, x, y) for 8,192 and 4,096 rows")
def linear_memory(loss: Loss, batch: Batch) -> Finding:
    """Memory kept for the backward grows no faster than the batch.

    The bytes saved for 8,192 rows must be at most 2.2 times those saved for 4,096 rows. With an
    N x N matrix, they would be 4 times as many. The memory for smaller batches is not checked.
    """
    if (batch.n, batch.dim, batch.classes) != (2, 1, 1):
        raise NotApplicableError  # the law uses sizes of its own, so a few batches suffice

    def kept(n: int) -> Tensor:
        many = Batch(n, 16, 8, seed=batch.seed)
        x = many.features.float().requires_grad_()
        return torch.tensor(saved_bytes(loss.value, x, many.labels))

    return Finding(kept(8192), "<=", 2.2 * kept(4096))


@law("module", show=("import copy\nprint(loss(x, y), copy.deepcopy(loss)(x, y))"))
def deep_copy(loss: Loss, batch: Batch) -> Finding:
    """A deep copy of the module is the same loss."""
    twin = loss.like(copy.deepcopy(loss.fn))
    return Finding(twin(batch.features, batch.labels), "==", loss(batch.features, batch.labels))


@law(
    "module",
    show=(
        "for module in loss.modules():\n"
        "    kept = vars(module).items()\n"
        "    print([name for name, value in kept if isinstance(value, torch.Tensor)])"
    ),
)
def tensors_are_state(loss: Loss, batch: Batch) -> Finding:
    """Every tensor that a module keeps is a parameter or a buffer.

    `to` does not move a plain attribute, and `state_dict` does not save it. The law counts the
    tensors that are plain attributes.
    """
    assert isinstance(loss.fn, torch.nn.Module)  # the law applies only to modules
    loss(batch.features, batch.labels)
    plain = [
        value
        for module in loss.fn.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    ]
    return Finding(float(len(plain)), "==", 0.0)


@law(
    "module",
    show=(
        "import copy\n"
        "twin, state = copy.deepcopy(loss), {k: v.clone() for k, v in loss.state_dict().items()}\n"
        "for tensor in (*twin.parameters(), *twin.buffers()):\n"
        "    tensor.data.zero_()\n"
        "twin.load_state_dict(state)\n"
        "print(loss(x, y), twin(x, y))"
    ),
)
def state_is_all(loss: Loss, batch: Batch) -> Finding:
    """A copy whose parameters and buffers were overwritten is whole again with `state_dict`."""
    twin = copy.deepcopy(loss.fn)
    assert isinstance(twin, torch.nn.Module)  # the law applies only to modules
    state = {name: value.clone() for name, value in twin.state_dict().items()}
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    twin.load_state_dict(state)
    return Finding(
        loss.like(twin)(batch.features, batch.labels), "==", loss(batch.features, batch.labels)
    )


def _anchors_with_positives(labels: Tensor) -> Tensor:
    return (labels[:, None] == labels).sum(1) > 1
