"""Edge cases, derivatives, types and errors of `supcon_loss`."""

import gc
import inspect
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.problems import KINDS, draw
from unmuddle import SupConLoss, supcon_loss
from unmuddle.supcon import choose_impl, valid_anchors
from unmuddle.supcon.backends import tiled
from unmuddle.supcon.loss import HAS_TRITON

IMPLS = ["reference", "dense", "tiled"]
every_impl = pytest.mark.parametrize("impl", IMPLS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("denominator", ["all", "negatives"])
@pytest.mark.parametrize("n", [1, 2, 7, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_valid_anchors_are_those_that_have_a_loss(
    weighted: bool, n: int, denominator: str, kind: str
) -> None:
    drawn = draw(kind, n, dim=3, seed=n, weighted=weighted)
    options = {**drawn.arguments, "denominator": denominator}
    valid = valid_anchors(drawn.features, **options)
    is_other = drawn.included & ~torch.eye(*drawn.weights.shape, dtype=torch.bool)
    weights = drawn.weights * is_other
    expected = drawn.included[: len(weights)] & (weights.sum(1) > 0)
    is_term = is_other & (drawn.terms > 0)
    if denominator == "negatives":
        is_term &= weights == 0
    expected &= is_term.any(1)
    assert torch.equal(valid.flatten(), expected)
    losses = supcon_loss(drawn.features, **options, temperature=0.5, reduction="none")
    assert losses.shape == valid.shape
    assert not losses[~valid].any()
    mean = supcon_loss(drawn.features, **options, temperature=0.5)
    torch.testing.assert_close(mean, losses[valid].mean() if valid.any() else losses.sum())


def test_valid_anchors_of_the_first_views_and_of_many_rows() -> None:
    x, labels = torch.randn(4, 2, 3), torch.tensor([0, 1, 2, -100])
    assert valid_anchors(x, labels, contrast_mode="one").tolist() == [True, True, True, False]
    assert valid_anchors(x[:, 0], labels, contrast_mode="one").tolist() == [False] * 4
    many = torch.zeros(1500, dtype=torch.int64)
    many[-1] = 1
    valid = valid_anchors(torch.zeros(1500, 1), many, denominator="negatives")
    assert valid.tolist() == [True] * 1499 + [False]
    faint = torch.full((2, 3), 1e-6)  # in half precision their products are 0
    assert valid_anchors(torch.zeros(2, 1, dtype=torch.half), faint).tolist() == [True, True]
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    of_views = valid_anchors(x, torch.zeros(4, dtype=torch.int64), weight=weight)
    assert of_views.tolist() == [[True] * 2, [False] * 2, [True] * 2, [True] * 2]
    undefined = torch.tensor([1.0, float("nan"), 0.0, 1.0])
    losses = supcon_loss(x[:, 0], torch.zeros(4, dtype=torch.int64), weight=undefined,
                         reduction="none")  # fmt: skip
    kept = valid_anchors(x[:, 0], torch.zeros(4, dtype=torch.int64), weight=undefined)
    assert kept.tolist() == [True, True, False, True]
    assert losses[kept].mean().isnan(), "what is undefined is not left out"
    with pytest.raises(ValueError, match="contrast_mode: expected one of"):
        valid_anchors(x, labels, contrast_mode="two")
    with pytest.raises(ValueError, match=r"labels: expected shape \(B,\) = \(4,\), got \(3,\)"):
        valid_anchors(x, labels[:3])


def test_negative_weights_and_masks_are_refused() -> None:
    x, mask = torch.randn(4, 3), torch.ones(4, 4)
    mask[1, 2] = -0.5
    with pytest.raises(ValueError, match="mask: expected numbers of at least 0, got -0.5"):
        supcon_loss(x, mask=mask)
    weight = torch.tensor([1.0, -2.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="weight: expected numbers of at least 0, got -2.0"):
        supcon_loss(x, torch.zeros(4, dtype=torch.int64), weight=weight)


def test_logarithms_of_memberships_are_refused() -> None:
    x, logits = torch.randn(8, 4), torch.randn(8, 3)
    with pytest.raises(ValueError, match="labels: expected memberships of at least 0"):
        supcon_loss(x, logits.log_softmax(1))
    ignored = logits.softmax(1)
    ignored[2] = -100
    assert supcon_loss(x, ignored).isfinite()
    with pytest.raises(ValueError, match="key_labels: expected memberships of at least 0"):
        supcon_loss(x, ignored, keys=x, key_labels=logits.log_softmax(1))
    ignored[3, 0] = -100
    with pytest.raises(ValueError, match="labels: expected memberships of at least 0"):
        supcon_loss(x, ignored)


@every_impl
@pytest.mark.parametrize("no_positive", ["skip", "zero"])
@pytest.mark.parametrize("labels", [[], [3], [0, 1, 2, 3], [-100, -100], [-100, 5]])
def test_without_a_positive_the_loss_is_zero_with_zero_gradient(
    impl: str, no_positive: str, labels: list[int]
) -> None:
    x = torch.randn(len(labels), 4, requires_grad=True)
    loss = supcon_loss(
        x, torch.tensor(labels, dtype=torch.int64), no_positive=no_positive, impl=impl
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


@every_impl
@pytest.mark.parametrize("n", [5, 700])
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
@pytest.mark.parametrize("positives", ["out", "in"])
def test_without_a_negative_the_loss_over_negatives_is_zero_with_zero_gradient(
    impl: str, n: int, temperature: float, positives: str
) -> None:
    x = torch.randn(n, 4, requires_grad=True)
    loss = supcon_loss(
        x, torch.rand(n, 3) + 0.1, positives=positives, denominator="negatives",
        temperature=temperature, impl=impl,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()


@every_impl
def test_no_positive_skip_and_zero_differ_by_the_count_of_anchors(impl: str) -> None:
    x, labels = torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 2])
    skip, zero = (supcon_loss(x, labels, no_positive=mode, impl=impl) for mode in ("skip", "zero"))
    torch.testing.assert_close(skip * 4, zero * 5)


@every_impl
@pytest.mark.parametrize("n", [8, 1200])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_nan_in_gives_nan_out(impl: str, n: int, temperature: float) -> None:
    x = torch.randn(n, 4)
    x[3, 1] = torch.nan
    assert supcon_loss(x, torch.arange(n) % 3, temperature=temperature, impl=impl).isnan()


@every_impl
def test_nan_in_the_mask_gives_nan_out(impl: str) -> None:
    mask = torch.eye(3)
    mask[0, 0] = torch.nan
    assert supcon_loss(torch.randn(3, 2, 4), mask=mask, impl=impl).isnan()


@every_impl
@pytest.mark.parametrize("n", [6, 1100])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_scales_and_temperatures_stay_finite(
    impl: str, n: int, scale: float, temperature: float
) -> None:
    x = (scale * torch.randn(n, 4)).requires_grad_()
    loss = supcon_loss(x, torch.arange(n) % 2, temperature=temperature, impl=impl)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


@every_impl
def test_a_zero_row_keeps_the_others_alive(impl: str) -> None:
    x = torch.randn(4, 3)
    x[0] = 0
    x.requires_grad_()
    supcon_loss(x, torch.tensor([0, 0, 1, 1]), impl=impl).backward()
    assert not x.grad[0].any()
    assert x.grad[1:].isfinite().all()
    assert x.grad[1:].any()


@every_impl
def test_unnormalised_input_of_any_length_is_finite_and_agrees(impl: str) -> None:
    x = 30 * torch.randn(1100, 3, dtype=torch.float64)
    labels = torch.arange(1100) % 4
    got = supcon_loss(x, labels, normalize=False, temperature=1.0, impl=impl)
    expected = supcon_loss(x, labels, normalize=False, temperature=1.0, impl="reference")
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@every_impl
def test_gradcheck_of_features_and_temperature(impl: str) -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 1, 2, -100])
    torch.autograd.gradcheck(
        lambda x, tau: supcon_loss(x, labels, temperature=tau, base_temperature=0.1, impl=impl),
        (x, tau),
    )


def test_gradcheck_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmuddle.supcon.backends.tiled.TILE", 3)
    labels = torch.tensor([0, 1, 0, 1, 2, -100, 1])
    for temperature in (0.02, 0.4):  # running maximum, fixed shift
        x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
        tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(
            lambda x, tau: supcon_loss(x, labels, temperature=tau, impl="tiled"), (x, tau)
        )


@every_impl
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradgradcheck_of_features_keys_and_temperature(
    impl: str, reduction: str, normalize: bool
) -> None:
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    labels, key_labels = torch.tensor([0, 1, 0, 1, -100]), torch.tensor([0, 1, 7])
    options = {"reduction": reduction, "normalize": normalize, "impl": impl}
    weights = {"denominator_weight": torch.rand(5), "key_weight": torch.rand(3)}

    def loss(x, keys, tau):
        return supcon_loss(
            x, labels, keys=keys, key_labels=key_labels, temperature=tau, **options, **weights
        )

    torch.autograd.gradgradcheck(loss, (x, keys, tau))


@every_impl
@pytest.mark.parametrize("n", [8, 600])
def test_a_gradient_penalty_is_differentiated_in_the_dtype_of_the_features(
    impl: str, n: int
) -> None:
    x, labels = torch.randn(n, 4), torch.arange(n) % 3
    gradients = []
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, impl)):
        leaf = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            loss = supcon_loss(leaf, labels, temperature=0.5, impl=backend)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        penalty = gradient.square().sum()
        penalty.backward()
        assert leaf.grad.dtype == dtype
        gradients.append(leaf.grad.double())
    torch.testing.assert_close(*gradients[::-1], rtol=1e-4, atol=1e-9)


@every_impl
def test_a_zero_row_gets_a_zero_second_derivative(impl: str) -> None:
    x, labels = torch.randn(5, 3), torch.arange(5) % 2
    x[1] = 0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(supcon_loss(x, labels, impl=impl), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert not gradient[1].any()
    assert not second[1].any()
    assert second.isfinite().all()


@every_impl
@pytest.mark.parametrize("supervision", ["labels", "mask", "weight", "denominator_weight"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_what_was_edited_after_the_forward_pass_is_an_error_or_of_no_effect(
    impl: str, supervision: str, create_graph: bool
) -> None:
    x = torch.randn(6, 2, 3, requires_grad=True)
    tensors = {"labels": torch.arange(6) % 3, "mask": torch.rand(6, 6), "weight": torch.rand(6)}
    tensors["denominator_weight"] = torch.rand(6)
    del tensors["mask" if supervision != "mask" else "labels"]
    loss = supcon_loss(x, **tensors, impl=impl)
    expected = torch.autograd.grad(loss, x, retain_graph=True)[0]
    tensors[supervision].copy_(tensors[supervision].flip(0))
    message, got = "modified by an inplace operation", expected
    try:
        got = torch.autograd.grad(loss, x, create_graph=create_graph)[0]
    except RuntimeError as error:
        message = str(error)
    assert "modified by an inplace operation" in message
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("n", [8, 700])
def test_a_second_backward_pass_gives_the_same_and_the_first_frees_the_mask(n: int) -> None:
    def alive() -> set[int]:
        return {id(t) for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (n, n)}

    x, mask = torch.randn(n, 3, requires_grad=True), torch.rand(n, n).double()
    before = alive()
    loss = supcon_loss(x, mask=mask)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, x)[0], first)
    assert alive() <= before


@every_impl
@pytest.mark.parametrize("undefined", [torch.nan, torch.inf])
def test_the_diagonal_of_a_mask_of_single_views_is_of_no_use(impl: str, undefined: float) -> None:
    x, mask = torch.randn(5, 3), torch.rand(5, 5)
    expected = supcon_loss(x, mask=mask, impl=impl)
    assert supcon_loss(x, mask=mask.fill_diagonal_(undefined), impl=impl) == expected


@every_impl
def test_faint_weights_are_weights(impl: str) -> None:
    x, labels = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    faint = torch.full((6,), 1e-40, dtype=torch.float64)
    expected = supcon_loss(x, labels, impl=impl)
    torch.testing.assert_close(supcon_loss(x, labels, weight=faint, impl=impl), expected)


def test_numbers_of_numpy_are_temperatures() -> None:
    x, labels = torch.randn(6, 3), torch.arange(6) % 2
    got = supcon_loss(x, labels, temperature=np.float32(0.5), base_temperature=np.float64(0.5))
    assert got == supcon_loss(x, labels, temperature=0.5, base_temperature=0.5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16])
def test_key_labels_of_any_type_are_their_numbers(dtype: torch.dtype) -> None:
    features, labels, keys = torch.randn(6, 4), torch.arange(6) % 3, torch.randn(4, 4)
    key_labels = torch.tensor([156, 0, 1, 2])  # as uint8, -100 is 156
    expected = supcon_loss(features, labels, keys=keys, key_labels=key_labels)
    typed = supcon_loss(features, labels, keys=keys, key_labels=key_labels.to(dtype))
    given = supcon_loss(features, labels, keys=keys.numpy(), key_labels=key_labels.numpy())
    assert typed == given == expected


@every_impl
def test_no_anchor_with_a_mask_and_keys(impl: str) -> None:
    features = torch.zeros(0, 4, requires_grad=True)
    mask, keys = torch.zeros(0, 0), torch.randn(3, 4)
    loss = supcon_loss(features, mask=mask, keys=keys, impl=impl)
    loss.backward()
    assert loss == 0
    assert features.grad is not None


@every_impl
def test_labels_of_any_type_meet_key_labels_of_another(impl: str) -> None:
    x, keys = torch.randn(4, 3), torch.randn(2, 3)
    labels, key_labels = torch.tensor([0, 0, 1, 1]), torch.tensor([256, -255])
    for dtype in (torch.uint8, torch.int8, torch.int32):
        narrow = supcon_loss(x, labels.to(dtype), keys=keys, key_labels=key_labels, impl=impl)
        assert torch.equal(
            narrow, supcon_loss(x, labels, keys=keys, key_labels=key_labels, impl=impl)
        )
    hot, soft = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 1]]), torch.rand(2, 2)
    for dtype in (torch.bool, torch.float64):
        typed = supcon_loss(x, hot.to(dtype), keys=keys, key_labels=soft, impl=impl)
        assert torch.equal(
            typed, supcon_loss(x, hot.float(), keys=keys, key_labels=soft, impl=impl)
        )


@every_impl
@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_result_type(impl: str, dtype: torch.dtype, result: torch.dtype) -> None:
    x = torch.randn(6, 4).to(dtype).requires_grad_()
    loss = supcon_loss(x, torch.arange(6) % 2, impl=impl)
    loss.backward()
    assert loss.dtype == result
    assert x.grad.dtype == dtype
    # The same rounded input in fp32 is the same computation.
    again = supcon_loss(x.detach().to(result), torch.arange(6) % 2, impl=impl)
    assert torch.equal(loss.detach(), again)


@every_impl
@pytest.mark.parametrize("n", [6, 700])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_changes_nothing(impl: str, n: int, reduction: str) -> None:
    x, labels = torch.randn(n, 4), torch.arange(n) % 2
    results = []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = supcon_loss(leaf, labels, reduction=reduction, impl=impl)
            value.sum().backward()
        results.append((value.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    if impl != "reference":  # what autograd does inside autocast is not ours
        assert torch.equal(results[0][1], results[1][1])


def test_tiled_keeps_a_constant_and_what_grows_with_n_for_the_backward() -> None:
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    n, d = 12_000, 16
    x = torch.randn(n, d, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        supcon_loss(x, torch.arange(n) % 8, impl="tiled")
    linear, constant = 4 * n * (2 * d + 8), 4 * tiled.CACHE_OF_LARGE
    assert sum(saved) < linear + constant < 4 * n * n / 20


@every_impl
def test_base_temperature_rescales(impl: str) -> None:
    x, labels = torch.randn(6, 4), torch.arange(6) % 2
    plain = supcon_loss(x, labels, temperature=0.1, impl=impl)
    scaled = supcon_loss(x, labels, temperature=0.1, base_temperature=0.05, impl=impl)
    torch.testing.assert_close(scaled, 2 * plain)


@every_impl
def test_reductions(impl: str) -> None:
    x, labels = torch.randn(4, 2, 3), torch.tensor([0, 0, 1, 5])
    each = supcon_loss(x, labels, reduction="none", impl=impl)
    assert each.shape == (4, 2)
    torch.testing.assert_close(supcon_loss(x, labels, reduction="sum", impl=impl), each.sum())
    torch.testing.assert_close(supcon_loss(x, labels, impl=impl), each.mean())


@every_impl
def test_label_values_do_not_matter(impl: str) -> None:
    x = torch.randn(5, 3)
    small = supcon_loss(x, torch.tensor([0, 1, 0, 1, 1]), impl=impl)
    huge = supcon_loss(x, torch.tensor([2**62, -(2**62), 2**62, -(2**62), -(2**62)]), impl=impl)
    assert torch.equal(small, huge)


def test_labels_may_be_a_list() -> None:
    x = torch.randn(4, 3)
    assert torch.equal(supcon_loss(x, [5, 5, 1, 1]), supcon_loss(x, torch.tensor([5, 5, 1, 1])))


def test_repr_shows_every_option() -> None:
    options = inspect.signature(SupConLoss).parameters
    shown = repr(SupConLoss(normalize=False))
    assert all(f"{name}=" in shown for name in options)
    assert "normalize=False" in shown


def test_module_calls_the_function_with_its_options() -> None:
    x, labels = torch.randn(4, 2, 3), torch.tensor([0, 0, 1, 1])
    module = SupConLoss(0.2, "one", 0.1, reduction="sum", impl="reference")
    expected = supcon_loss(
        x, labels, temperature=0.2, contrast_mode="one", base_temperature=0.1,
        reduction="sum", impl="reference",
    )  # fmt: skip
    assert torch.equal(module(x, labels), expected)
    assert torch.equal(SupConLoss()(x, None, torch.eye(4)), SupConLoss()(x))


@every_impl
@pytest.mark.parametrize("contrast_mode", ["all", "one"])
def test_the_call_of_the_common_implementation_gives_its_number(
    impl: str, contrast_mode: str
) -> None:
    # The usual recipe, written from its description: views of all samples one after another, the
    # anchors all of them or the first views, the mean over anchors of -(tau / base) sum / count.
    batch, views, tau, base = 6, 3, 0.1, 0.07
    features = nn.functional.normalize(torch.randn(batch, views, 5, dtype=torch.float64), dim=2)
    labels = torch.tensor([0, 1, 0, 2, 1, 2])
    contrast = torch.cat([features[:, v] for v in range(views)])
    anchors = contrast if contrast_mode == "all" else features[:, 0]
    positive = (labels[:, None] == labels).double().repeat(len(anchors) // batch, views)
    others = 1 - torch.eye(len(anchors), len(contrast), dtype=torch.float64)
    logits = anchors @ contrast.T / tau
    log_p = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    per_anchor = (positive * others * log_p).sum(1) / (positive * others).sum(1)
    expected = -(tau / base) * per_anchor.mean()
    loss = SupConLoss(
        temperature=tau, contrast_mode=contrast_mode, base_temperature=base, impl=impl
    )
    torch.testing.assert_close(loss(features, labels), expected, rtol=1e-12, atol=0)


def test_temperature_can_be_a_trained_parameter() -> None:
    module = SupConLoss(nn.Parameter(torch.tensor(0.1)))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    module(torch.randn(6, 3), torch.arange(6) % 2).backward()
    assert module.temperature.grad.isfinite()


def test_auto_is_inspectable_and_an_explicit_choice_is_kept() -> None:
    assert choose_impl("auto") == "tiled"
    assert choose_impl("auto", "cuda") == ("triton" if HAS_TRITON else "tiled")
    assert choose_impl("auto", "cuda", pairs=2048**2) == "dense"
    assert choose_impl("auto", "cuda", pairs=2048**2 + 1) == choose_impl("auto", "cuda")
    assert choose_impl("auto", pairs=512**2) == "dense"
    assert choose_impl("auto", pairs=512**2 + 1) == "tiled"
    assert choose_impl("auto", "cuda", dim=2049) == "tiled"
    assert [choose_impl(name) for name in IMPLS] == IMPLS
    with pytest.raises(ValueError, match="impl: expected one of .* got 'fast'"):
        choose_impl("fast")


@pytest.mark.parametrize(
    ("message", "error", "arguments"),
    [
        (r"labels: expected shape \(B,\) = \(4,\), got \(3,\)", ValueError, {"labels": torch.zeros(3, dtype=int)}),
        (r"labels: expected an integer type, got torch.float32", TypeError, {"labels": torch.zeros(4)}),
        (r"labels: \(B, 1\) could be classes or memberships", ValueError, {"labels": torch.zeros(4, 1)}),
        (r"labels: expected shape \(B, C\) = \(4, 1\), got \(3, 1\)", ValueError, {"labels": torch.zeros(3, 1)}),
        (r"labels: expected shape \(B, C\) = \(4, 3\), got \(5, 3\)", ValueError, {"labels": torch.zeros(5, 3)}),
        (r"weight: expected shape \(B,\) = \(4,\), got \(3,\)", ValueError, {"labels": torch.zeros(4, dtype=int), "weight": torch.ones(3)}),
        (r"keys: expected shape \(M, D\) with D = 3, got \(2, 4\)", ValueError, {"labels": torch.zeros(4, dtype=int), "keys": torch.zeros(2, 4)}),
        (r"key_labels: required when labels are given", ValueError, {"labels": torch.zeros(4, dtype=int), "keys": torch.zeros(2, 3)}),
        (r"key_labels: given without keys", ValueError, {"labels": torch.zeros(4, dtype=int), "key_labels": torch.zeros(2, dtype=int)}),
        (r"key_labels: expected shape \(M,\) = \(2,\), got \(3,\)", ValueError, {"labels": torch.zeros(4, dtype=int), "keys": torch.zeros(2, 3), "key_labels": torch.zeros(3, dtype=int)}),
        (r"key_labels: expected shape .* to match labels", ValueError, {"labels": torch.zeros(4, 3), "keys": torch.zeros(2, 3), "key_labels": torch.zeros(2, dtype=int)}),
        (r"positives: expected one of \('out', 'in'\), got 'both'", ValueError, {"positives": "both"}),
        (r"denominator: expected one of \('all', 'negatives'\), got 'some'", ValueError, {"denominator": "some"}),
        (r"mask: expected shape \(B, B\) = \(4, 4\), got \(4, 3\)", ValueError, {"mask": torch.zeros(4, 3)}),
        (r"labels, mask: pass either", ValueError, {"labels": torch.zeros(4, dtype=int), "mask": torch.eye(4)}),
        (r"features must be \(B, V, D\) with V >= 2, got V = 1", ValueError, {}),
        (r"features: expected shape \(N, D\) or \(B, V, D\), got \(4,\)", ValueError, {"features": torch.zeros(4)}),
        (r"features: expected a floating-point type, got torch.int64", TypeError, {"features": torch.zeros(4, 3, dtype=int)}),
        (r"denominator_weight: expected shape \(B,\) = \(4,\), got \(3,\)", ValueError, {"mask": torch.ones(4, 4), "denominator_weight": torch.ones(3)}),
        (r"denominator_weight: expected numbers of at least 0, got -1.0", ValueError, {"mask": torch.ones(4, 4), "denominator_weight": -torch.ones(4)}),
        (r"key_weight: given without keys", ValueError, {"mask": torch.ones(4, 4), "key_weight": torch.ones(4)}),
        (r"key_weight: expected shape \(M,\) = \(2,\), got \(4,\)", ValueError, {"keys": torch.ones(2, 3), "mask": torch.ones(4, 4), "key_weight": torch.ones(4)}),
        (r"features: expected at least one view and one dimension, got \(4, 0, 3\)", ValueError, {"features": torch.zeros(4, 0, 3)}),
        (r"features: expected at least one view and one dimension, got \(4, 0\)", ValueError, {"features": torch.zeros(4, 0)}),
        (r"features: expected a tensor, got list", TypeError, {"features": [[1.0, 2.0]]}),
        (r"temperature: expected a number or a scalar tensor, got shape \(1,\)", ValueError, {"temperature": torch.ones(1)}),
        (r"temperature: expected a positive number, got None", ValueError, {"temperature": None}),
        (r"base_temperature: expected a positive number, got '1'", ValueError, {"base_temperature": "1"}),
        (r"temperature: expected a positive number, got 0", ValueError, {"temperature": 0}),
        (r"temperature: expected a positive number, got nan", ValueError, {"temperature": float("nan")}),
        (r"base_temperature: expected a positive number, got -1", ValueError, {"base_temperature": -1}),
        (r"contrast_mode: expected one of \('all', 'one'\), got 'some'", ValueError, {"contrast_mode": "some"}),
        (r"reduction: expected one of .* got 'avg'", ValueError, {"reduction": "avg"}),
        (r"no_positive: expected one of .* got 'drop'", ValueError, {"no_positive": "drop"}),
        (r"temperature: expected a positive number, got True", ValueError, {"temperature": True}),
        (r"temperature: expected a positive number, got inf", ValueError, {"temperature": float("inf")}),
        (r"normalize: expected True or False, got 'no'", ValueError, {"normalize": "no"}),
        (r"gather: expected True or False, got 1", ValueError, {"gather": 1}),
        (r"ignore_index: expected an integer, got None", ValueError, {"ignore_index": None}),
        (r"keys: expected a tensor, got tuple; a queue has two", TypeError, {"labels": torch.zeros(4, dtype=int), "keys": (torch.ones(2, 3), torch.zeros(2))}),
    ],
)  # fmt: skip
def test_wrong_input_is_named(message: str, error: type[Exception], arguments: dict) -> None:
    arguments = {"features": torch.zeros(4, 3), "labels": None} | arguments
    with pytest.raises(error, match=message):
        supcon_loss(**arguments)


@pytest.mark.parametrize("n", [8, 600])
@pytest.mark.parametrize("impl", ["tiled", "reference"])
def test_supervision_gets_no_gradient(impl: str, n: int) -> None:
    features, keys = torch.randn(n, 4, requires_grad=True), torch.randn(3, 4)
    soft, soft_keys = torch.rand(n, 2, requires_grad=True), torch.rand(3, 2, requires_grad=True)
    mask = torch.rand(n, n, requires_grad=True)
    (
        supcon_loss(features, soft, keys=keys, key_labels=soft_keys, impl=impl)
        + supcon_loss(features, mask=mask, impl=impl)
    ).backward()
    assert features.grad is not None
    assert soft.grad is None
    assert soft_keys.grad is None
    assert mask.grad is None
    assert not supcon_loss(features.detach(), soft, impl=impl).requires_grad


def test_module_refuses_wrong_options_when_built() -> None:
    with pytest.raises(ValueError, match="reduction"):
        SupConLoss(reduction="avg")


def test_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        supcon_loss(torch.randn(4, 3, requires_grad=True), torch.tensor([0, 0, 1, 1])).backward()
