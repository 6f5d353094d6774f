"""`FeatureQueue`."""

import pytest
import torch

from unmuddle import FeatureQueue, supcon_loss


def test_oldest_go_first_and_empty_slots_are_ignored() -> None:
    queue = FeatureQueue(size=4, dim=1)
    for start in (0, 3):
        values = torch.arange(start, start + 3)
        queue.enqueue(values[:, None].float(), values)
    features, labels = queue.keys()
    assert labels.tolist() == [4, 5, 2, 3]
    assert features[:, 0].tolist() == [4, 5, 2, 3]


def test_a_batch_larger_than_the_queue_leaves_its_newest() -> None:
    queue = FeatureQueue(size=3, dim=1)
    queue.enqueue(torch.arange(8.0)[:, None], torch.arange(8))
    assert sorted(queue.keys()[1].tolist()) == [5, 6, 7]
    queue.enqueue(torch.zeros(1, 1), torch.tensor([8]))
    assert sorted(queue.keys()[1].tolist()) == [6, 7, 8]
    queue.enqueue(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    assert sorted(queue.keys()[1].tolist()) == [6, 7, 8]


@pytest.mark.parametrize("soft", [False, True])
def test_loss_with_a_queue_is_the_loss_with_its_filled_part(soft: bool) -> None:
    queue = FeatureQueue(size=10, dim=4, num_classes=3 if soft else None)
    past, features = torch.randn(2, 2, 4), torch.randn(6, 4)
    labels = torch.rand(2, 3) if soft else torch.tensor([0, 1])
    queue.enqueue(past, labels)
    own = torch.rand(6, 3) if soft else torch.arange(6) % 3
    keys, key_labels = queue.keys()
    with_queue = supcon_loss(features, own, keys=keys, key_labels=key_labels)
    filled = supcon_loss(
        features, own, keys=past.flatten(0, 1), key_labels=labels.repeat_interleave(2, 0)
    )
    torch.testing.assert_close(with_queue, filled)


@pytest.mark.parametrize("classes", [None, 3])
def test_what_was_queued_without_labels_is_nobodys_positive(classes: int | None) -> None:
    queue = FeatureQueue(8, 4, classes)
    queue.enqueue(torch.randn(4, 4))
    labels = torch.zeros(6, dtype=torch.int64)
    labels = labels if classes is None else torch.nn.functional.one_hot(labels, classes)
    features = torch.randn(6, 4)
    rows, row_labels = queue.keys()
    alone = supcon_loss(features[:1], labels[:1], keys=rows, key_labels=row_labels)
    assert alone == 0  # no positive
    contrast = torch.cat([features, rows[:4]])
    both = supcon_loss(features, labels, keys=rows, key_labels=row_labels)
    z = torch.nn.functional.normalize(contrast) / 0.07**0.5
    s = (z[:6] @ z.T).fill_diagonal_(-torch.inf)
    others = s[:, :6][~torch.eye(6, dtype=torch.bool)].view(6, 5)
    torch.testing.assert_close(both, (s.logsumexp(1) - others.mean(1)).mean())


def test_unlabelled_queue_gives_negatives() -> None:
    queue, features = FeatureQueue(size=6, dim=4), torch.randn(3, 2, 4)
    past = torch.randn(2, 4)
    queue.enqueue(past)
    keys, key_labels = queue.keys()
    torch.testing.assert_close(
        supcon_loss(features, keys=keys, key_labels=key_labels), supcon_loss(features, keys=past)
    )


def test_state_is_saved_and_restored_and_carries_no_gradient() -> None:
    queue, other = FeatureQueue(size=5, dim=2), FeatureQueue(size=5, dim=2)
    queue.enqueue(torch.randn(3, 2, requires_grad=True), torch.tensor([1, 2, 3]))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.enqueue(torch.ones(3, 2), torch.tensor([4, 5, 6]))
    assert all(torch.equal(a, b) for a, b in zip(queue.keys(), other.keys(), strict=True))
    assert not queue.keys()[0].requires_grad


@pytest.mark.parametrize(
    ("message", "features", "labels"),
    [
        (r"features: expected shape \(N, D\) = \(3, 2\), got \(3, 4\)", torch.zeros(3, 4), torch.zeros(3, dtype=int)),
        (r"labels: expected shape \(B,\) = \(3,\), got \(2,\)", torch.zeros(3, 2), torch.zeros(2, dtype=int)),
        (r"labels: expected integer labels, as the queue was built with num_classes, got \(3, 2\)", torch.zeros(3, 2), torch.zeros(3, 2)),
    ],
)  # fmt: skip
def test_wrong_input_leaves_the_queue_as_it_was(message: str, features, labels) -> None:
    queue = FeatureQueue(size=5, dim=2)
    queue.enqueue(torch.ones(2, 2), torch.tensor([7, 8]))
    before = {k: v.clone() for k, v in queue.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        queue.enqueue(features, labels)
    assert all(torch.equal(before[k], v) for k, v in queue.state_dict().items())


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    saved = FeatureQueue(size=4, dim=2)
    saved.enqueue(torch.ones(2, 2), torch.tensor([1, 2]))
    for message, queue in (
        (r"features: expected \(4, 3\), got \(4, 2\)", FeatureQueue(size=4, dim=3)),
        (r"labels: expected \(4, 5\), got \(4,\)", FeatureQueue(4, 2, num_classes=5)),
        ("ignored: saved with ignore_index=-100, not -1", FeatureQueue(4, 2, ignore_index=-1)),
    ):
        before = {k: v.clone() for k, v in queue.state_dict().items()}
        with pytest.raises(RuntimeError, match=message):
            queue.load_state_dict(saved.state_dict())
        assert all(torch.equal(before[k], v) for k, v in queue.state_dict().items())


def test_soft_labels_leave_no_room_for_0_as_ignored() -> None:
    with pytest.raises(ValueError, match="ignore_index: with soft labels 0 means membership in no"):
        FeatureQueue(4, 2, num_classes=3, ignore_index=0)
    FeatureQueue(4, 2, ignore_index=0)


def test_wrong_size_is_named() -> None:
    with pytest.raises(ValueError, match="size: expected a positive integer, got 0"):
        FeatureQueue(size=0, dim=2)
    with pytest.raises(ValueError, match="dim: expected a positive integer, got 4.0"):
        FeatureQueue(4, 4.0)
