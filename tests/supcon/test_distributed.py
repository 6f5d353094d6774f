"""`gather=True` in 1 to 4 real processes: what one process with all samples computes."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.helpers.processes import run
from unmuddle import FeatureQueue, supcon_loss
from unmuddle.supcon.loss import HAS_TRITON

SIZES = [(7,), (5, 4), (5, 0, 3), (5, 0, 3, 1)]
CASES = {
    "default": {},
    "in, negatives": {"positives": "in", "denominator": "negatives"},
    "zero, one view": {"no_positive": "zero", "contrast_mode": "one"},
    "sum": {"reduction": "sum"},
    "reference": {"impl": "reference"},
    "sharp": {"temperature": 0.01},
    "weights of the denominator": {"weighs_terms": True},
    "dense": {"impl": "dense"},
} | ({"kernels": {"impl": "triton"}} if HAS_TRITON else {})


class Model(nn.Module):
    """Everything that can be trained: embeddings, temperature, keys."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Linear(6, 4).double()
        self.tau = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
        self.keys = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))

    def forward(self, x: Tensor, labels: Tensor | None, weight: Tensor, **options) -> Tensor:
        if labels is not None:
            kind = labels.new_ones(5, *labels.shape[1:])
            options |= {"keys": self.keys, "key_labels": kind}
        if options.pop("weighs_terms", False):
            options["denominator_weight"] = 2 * weight
        options.setdefault("temperature", self.tau)
        return supcon_loss(self.net(x), labels, weight=weight, **options)


def _averaged_gradients_are_those_of_one_process(
    sizes: tuple[int, ...], supervision: str, options: dict
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 2, 6, generator=g, dtype=torch.float64)
    classes = torch.randint(3, (len(x),), generator=g)
    one_hot = nn.functional.one_hot(classes, 3).double()
    labels = {"classes": classes, "soft": one_hot + 0.1, "views": None}[supervision]
    weight = torch.rand(len(x), generator=g, dtype=torch.float64)
    model = Model()

    first = sum(sizes[: dist.get_rank()])
    ours = slice(first, first + sizes[dist.get_rank()])
    own_labels = None if labels is None else labels[ours]
    loss = model(x[ours], own_labels, weight[ours], gather=True, **options)
    loss.backward()
    gathered = [p.grad for p in model.parameters() if p.grad is not None]
    for gradient in gathered:
        dist.all_reduce(gradient)
        gradient /= len(sizes)

    model.zero_grad()
    expected = model(x, labels, weight, **options)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    alone = [p.grad for p in model.parameters() if p.grad is not None]
    for gradient, truth in zip(gathered, alone, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-12)


def _all_cases(sizes: tuple[int, ...]) -> None:
    for supervision in ("classes", "soft", "views"):
        for options in CASES.values():
            _averaged_gradients_are_those_of_one_process(sizes, supervision, options)


@pytest.mark.parametrize(
    "sizes",
    [*SIZES[1::2], *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in SIZES[::2])],
)
def test_averaged_gradients_are_those_of_one_process(sizes: tuple[int, ...]) -> None:
    run(_all_cases, sizes)


def _single_precision(sizes: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    x, labels = (
        torch.randn(sum(sizes), 8, generator=g),
        torch.randint(3, (sum(sizes),), generator=g),
    )
    first = sum(sizes[: dist.get_rank()])
    ours = slice(first, first + sizes[dist.get_rank()])
    own, every = x[ours].clone().requires_grad_(), x.clone().requires_grad_()
    supcon_loss(own, labels[ours], gather=True).backward()
    supcon_loss(every, labels).backward()
    error = (own.grad / len(sizes) - every.grad[ours]).norm()
    assert error <= 1e-6 * every.grad.norm()


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_in_single_precision_agree_to_a_millionth(sizes: tuple[int, ...]) -> None:
    run(_single_precision, sizes)


def _other_types(sizes: tuple[int, ...]) -> None:
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    dtype = (torch.int64, torch.uint8, torch.int32)[dist.get_rank()]
    loss = supcon_loss(x, labels.to(dtype), gather=True)
    everyone = [torch.empty_like(x) for _ in sizes]
    dist.all_gather(everyone, x)
    expected = supcon_loss(torch.cat(everyone), labels.repeat(3))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_label_types_may_differ_between_processes() -> None:
    run(_other_types, (4, 4, 4))


def _wrong_input(sizes: tuple[int, ...]) -> None:
    rank, x = dist.get_rank(), torch.randn(3, 4)
    with pytest.raises(
        RuntimeError if rank else ValueError, match=r"process 0 refused|expected shape"
    ):
        supcon_loss(x, torch.zeros(3 if rank else 2, dtype=torch.int64), gather=True)
    with pytest.raises(
        ValueError, match=r"gather: .* of different kinds: dim . here, . in process ."
    ):
        supcon_loss(torch.randn(3, 4 + rank), torch.zeros(3, dtype=torch.int64), gather=True)
    labels = torch.zeros(3, dtype=torch.int64)
    key = {"keys": x[:1], "key_labels": labels[:1]} if rank else {}  # of some processes only
    with pytest.raises(ValueError, match=r"of different kinds: keys . here, . in process ."):
        supcon_loss(x, labels, gather=True, **key)
    with pytest.raises(ValueError, match="mask: not supported with gather=True"):
        supcon_loss(x, mask=torch.eye(3), gather=True)
    assert supcon_loss(x[:0], torch.zeros(0, dtype=torch.int64), gather=True).item() == 0


def test_wrong_input_of_one_process_is_an_error_of_all() -> None:
    run(_wrong_input, (1, 1, 1))


def _queue(sizes: tuple[int, ...]) -> None:
    rank = dist.get_rank()
    queue = FeatureQueue(size=8, dim=2, gather=True)
    queue.enqueue(torch.full((rank, 2), float(rank)), torch.full((rank,), rank))
    queue.enqueue(torch.full((1, 2), 10.0 + rank), torch.tensor([10 + rank]))
    features, labels = queue.keys()
    assert labels.tolist() == [1, 2, 2, 10, 11, 12, -100, -100]
    assert torch.equal(features[:6, 0], labels[:6].float())


def test_queue_holds_the_embeddings_of_all_processes_in_rank_order() -> None:
    run(_queue, (1, 1, 1))


def test_without_processes_gather_is_the_local_batch() -> None:
    x, labels = torch.randn(6, 4), torch.arange(6) % 2
    assert torch.equal(supcon_loss(x, labels, gather=True), supcon_loss(x, labels))


def test_losses_of_each_anchor_are_not_gathered() -> None:
    with pytest.raises(ValueError, match="reduction: 'none' is not supported with gather=True"):
        supcon_loss(torch.randn(6, 4), torch.arange(6) % 2, gather=True, reduction="none")


def _compiled_as_eager(sizes: tuple[int, ...]) -> None:
    rows = sizes[dist.get_rank()]
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows), requires_grad=True)

    def loss(features: Tensor) -> Tensor:
        return supcon_loss(2 * features, torch.arange(rows) % 2, gather=True)

    found, expected = torch.compile(loss, backend="aot_eager")(x), loss(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (found, expected)))


def test_a_compiled_function_gathers_as_an_eager_one() -> None:
    run(_compiled_as_eager, (5, 4))
