"""`supcon_loss`: the contract. Shapes, validation, choice of backend, reduction."""

from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from unmuddle.supcon import autograd
from unmuddle.supcon.backends import one_tile, reference
from unmuddle.supcon.batch import Batch, check_shape
from unmuddle.supcon.distributed import gathers_outside_graphs, is_distributed
from unmuddle.supcon.problem import (
    MAX_KERNEL_DIM,
    ContrastSet,
    Options,
    Problem,
    is_autocast,
    outside_autocast,
    unit_rows,
)
from unmuddle.supcon.reduction import AnchorWeights

ContrastMode = Literal["all", "one"]
PositivesMode = Literal["out", "in"]
Denominator = Literal["all", "negatives"]
NoPositive = Literal["skip", "zero"]
Reduction = Literal["mean", "sum", "none"]
Impl = Literal["auto", "reference", "tiled", "triton"]
SHARP_TEMPERATURE = 1 / 40


def _has_triton() -> bool:
    """Return whether Triton is installed in a version that multiplies fp64."""
    try:
        return find_spec("triton") is not None and _release(version("triton")) >= (3, 4)
    except PackageNotFoundError:  # a nightly build, which has another name
        return True
    except (ImportError, ValueError):  # blocked
        return False


def _release(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".")[:2])


HAS_TRITON = _has_triton()
CHOICES = {
    "contrast_mode": get_args(ContrastMode),
    "positives": get_args(PositivesMode),
    "denominator": get_args(Denominator),
    "no_positive": get_args(NoPositive),
    "reduction": get_args(Reduction),
    "impl": get_args(Impl),
}


@gathers_outside_graphs
def supcon_loss(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    contrast_mode: ContrastMode = "all",
    positives: PositivesMode = "out",
    denominator: Denominator = "all",
    weight: Tensor | None = None,
    normalize: bool = True,
    no_positive: NoPositive = "skip",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    base_temperature: float | None = None,
    gather: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """Supervised contrastive loss of Khosla et al. 2020.

    For rows `z_i` of unit length, `s_ij = z_i · z_j / τ`, all other rows `A(i)` and weights `w_ij`
    of the positives (1 for rows of the same class and other views of the same sample, else 0):

        L_i = log sum_{a in A(i)} exp s_ia - sum_p w_ip s_ip / sum_p w_ip          ("out", Eq. 2)
        L_i = log sum_{a in A(i)} exp s_ia - log(sum_p w_ip exp s_ip / sum_p w_ip)  ("in", Eq. 3)

    Args:
        features: `(N, D)` embeddings, or `(B, V, D)`: V views of each of B samples, N = B·V rows.
        labels: `(B,)` integer classes; or `(B, C)` soft or multi-hot memberships `y_i >= 0`, which
            weigh positives by `w_ij = y_i · y_j` (one-hot rows are the integer case). `None` with
            no mask: the views of one sample are its positives (SimCLR). No gradient.
        mask: `(B, B)` non-negative weights instead of labels; `mask[i, j]` is how much sample j is
            a positive of sample i. Need not be symmetric. No gradient.
        keys: `(M, D)` more rows to be contrasted with, such as a queue; they are no anchors.
        key_labels: `(M,)` or `(M, C)` labels of the keys, needed where `labels` are given. Without
            labels every key is a negative, but for those labelled `ignore_index`: give both results
            of `FeatureQueue.keys()`.
        temperature: `τ > 0`; a scalar tensor may require a gradient (its value is not checked:
            train its logarithm to keep it positive).
        contrast_mode: `"all"`: every row is an anchor; `"one"`: the first view of each sample is.
        positives: where the mean over positives is: `"out"` of the logarithm or `"in"` it.
        denominator: `"all"`: `A(i)` is every other row; `"negatives"`: every row with `w_ij = 0`.
        weight: `(B,)` non-negative weights of the anchors' losses; `"mean"` is the weighted mean,
            and with `reduction="none"` each loss is multiplied by its weight. What a sample weighs
            as a positive is set by soft labels.
        normalize: scale rows to unit length; a zero row stays zero and gets a zero gradient.
        no_positive: anchors without a positive (or, with `denominator="negatives"`, without a
            negative) are left out of the mean (`"skip"`) or count as 0 (`"zero"`).
        ignore_index: samples and keys of this label (soft: rows filled with it) take no part: no
            anchor, positive or negative. Their features must be finite all the same.
        reduction: `"mean"`, `"sum"`, or `"none"`: `(N,)` for `(N, D)` features, `(B, V)` for
            `(B, V, D)`, `(B,)` with `contrast_mode="one"`. With `"none"` an anchor without a
            positive has the loss 0: select with `valid_anchors` before you average or log.
        base_temperature: if given, the loss is multiplied by `τ / base_temperature`.
        gather: contrast with the samples of all processes of `torch.distributed`. Every process
            gets the loss of the global batch; averaged over the processes, as
            `DistributedDataParallel` does, gradients are those of one process holding that batch.
            Local batches may differ in size. Keys must be the same everywhere.
        impl: `"reference"` (dense, differentiable twice), `"tiled"` (O(N·D) memory), `"triton"`
            (the same on CUDA), or `"auto"`, which `choose_impl` resolves.

    Returns:
        The loss in fp32 (fp64 for fp64 features). 0 with zero gradient when no anchor has a
        positive. NaN in gives NaN out.

    Raises:
        ValueError: a shape or an option does not fit.
        TypeError: `features` is not floating point, or `(B,)` labels are not integer.
        RuntimeError: the input of another process was refused (`gather=True`).

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(supcon_loss(z, torch.tensor([0, 0, 1, 1]), temperature=1.0).item(), 4)
        0.5514

    References:
        Khosla et al., Supervised Contrastive Learning, 2020, arXiv 2004.11362, Eq. 2 and 3.
    """
    check_options(
        temperature=temperature, contrast_mode=contrast_mode, positives=positives,
        denominator=denominator, no_positive=no_positive, reduction=reduction,
        base_temperature=base_temperature, gather=gather, impl=impl,
    )  # fmt: skip
    batch, shard = Batch(features, labels, mask, weight, keys, key_labels), None
    if gather and is_distributed():
        batch, shard = batch.gathered()
    else:
        batch = batch.checked()
    contrast = batch.contrast_set(ignore_index)
    anchors = batch.features.shape[0] * batch.views()
    is_small = shard is None and one_tile.holds(anchors * len(contrast.x), contrast.x.device)
    backend = _choose_backend(impl, contrast, positives, denominator, is_small)
    autocast = is_autocast(features)
    dtype = _working_dtype(contrast.x, anchors, temperature, backend, autocast)
    if isinstance(temperature, Tensor):
        inv_temperature = 1 / temperature.to(contrast.x.device, dtype)
    else:
        inv_temperature = contrast.x.new_full((), 1 / temperature, dtype=dtype)
    options = Options(
        anchors=anchors,
        first=shard.first if shard else 0,
        last=shard.last if shard else anchors,
        sharded=shard is not None,
        normalize=normalize,
        positives=positives,
        denominator=denominator,
        product_dtype=_product_dtype(features, dtype, autocast),
        impl=backend,
        one_tile=backend == "tiled" and is_small,
        keep=torch.is_grad_enabled()
        and (contrast.x.requires_grad or inv_temperature.requires_grad),
    )
    weights = AnchorWeights(
        included=None if contrast.included is None else contrast.included[:anchors],
        weight=batch.weight,
        views=batch.views(),
        first_view_only=contrast_mode == "one",
        counts_zeros=no_positive == "zero",
        is_mean=reduction == "mean",
    )
    keys_need_gradient = batch.keys is not None and batch.keys.requires_grad
    with outside_autocast(features) if autocast else nullcontext():
        if reduction != "none" and backend != "reference":
            loss = autograd.weighted_sum(
                contrast, inv_temperature, options, shard, keys=keys_need_gradient, weights=weights
            )
        else:
            losses, has_loss = (
                _reference_losses(contrast, inv_temperature, options)
                if backend == "reference"
                else autograd.anchor_losses(
                    contrast, inv_temperature, options, shard, keys=keys_need_gradient
                )
            )
            loss = losses * weights.of(has_loss)
            loss = loss if reduction == "none" else loss.sum()
    if base_temperature is not None:
        loss = loss / (inv_temperature * base_temperature)
    if dtype == torch.float64 and features.dtype != torch.float64:
        loss = loss.float()
    if reduction == "none" and contrast_mode == "one":
        return loss[:: batch.views()]
    if reduction == "none" and features.ndim == 3:
        return loss.unflatten(0, features.shape[:2])
    return loss


def _choose_backend(
    impl: Impl, contrast: ContrastSet, positives: str, denominator: str, is_small: bool
) -> str:
    x, labels = contrast.x, contrast.labels
    if x.shape[0] < 2:
        return "reference"  # no pair, nothing to be fast at
    if impl != "auto":
        return impl
    is_classed = labels is not None and labels.ndim == 1
    is_default = positives == "out" and denominator == "all"
    return _fastest(x.is_cuda and not is_small, x.shape[1], not (is_classed or is_default))


def _working_dtype(
    x: Tensor, anchors: int, temperature: float | Tensor, backend: str, autocast: bool
) -> torch.dtype:
    """fp32, or fp64 where that costs little and rounding a similarity is felt."""
    if backend == "reference" or x.dtype == torch.float64:
        return torch.float64
    is_sharp = not isinstance(temperature, Tensor) and temperature < SHARP_TEMPERATURE
    is_small = anchors * len(x) <= one_tile.MAX_PAIRS
    if is_sharp and is_small and x.dtype == torch.float32 and not autocast:
        return torch.float64
    return torch.float32


def _product_dtype(features: Tensor, working: torch.dtype, autocast: bool) -> torch.dtype:
    if features.dtype in (torch.float16, torch.bfloat16):
        return features.dtype
    if autocast and features.dtype == torch.float32:
        return torch.get_autocast_dtype(features.device.type)
    return working


def _reference_losses(
    contrast: ContrastSet, inv_temperature: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    z = contrast.x.to(inv_temperature.dtype)
    z = unit_rows(z)[0] if options.normalize else z
    options = options._replace(first=0, last=options.anchors, sharded=False)
    problem = Problem.build(z, contrast, inv_temperature, options)
    return reference.anchor_losses(problem, options.positives, options.denominator)


def choose_impl(
    impl: Impl = "auto",
    device: torch.device | str = "cpu",
    *,
    pairs: int = 2**62,
    dim: int = 128,
    weighs_pairs: bool = False,
) -> str:
    """The backend that `impl` stands for: an explicit name is never replaced by another.

    Args:
        impl: the option of `supcon_loss`.
        device: of the features.
        pairs: of rows, N² without keys; a small batch on a GPU is left to `"tiled"`, which holds it
            in one tile. Default: a large one.
        dim: D.
        weighs_pairs: soft labels or a mask together with positives="in" or
            denominator="negatives", which the kernels do not know.

    Examples:
        >>> choose_impl("auto", "cpu")
        'tiled'
    """
    check_choice("impl", impl)
    if impl != "auto":
        return impl
    device = torch.device(device)
    is_large = not one_tile.holds(pairs, device)
    return _fastest(device.type == "cuda" and is_large, dim, weighs_pairs)


def _fastest(is_large_on_cuda: bool, dim: int, weighs_pairs: bool) -> str:
    suits_kernels = is_large_on_cuda and dim <= MAX_KERNEL_DIM and not weighs_pairs
    return "triton" if suits_kernels and HAS_TRITON else "tiled"


def check_options(
    *,
    temperature: float | Tensor,
    contrast_mode: str,
    positives: str,
    denominator: str,
    no_positive: str,
    reduction: str,
    base_temperature: float | None,
    gather: bool,
    impl: str,
) -> None:
    """Raise a ValueError that names the first option out of its range."""
    check_choice("contrast_mode", contrast_mode)
    check_choice("positives", positives)
    check_choice("denominator", denominator)
    check_choice("no_positive", no_positive)
    check_choice("reduction", reduction)
    check_choice("impl", impl)
    if isinstance(temperature, Tensor):
        check_shape("temperature", temperature, (), "()")
    elif not isinstance(temperature, (int, float)) or not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature!r}")
    if base_temperature is not None and not base_temperature > 0:
        raise ValueError(f"base_temperature: expected a positive number, got {base_temperature}")
    if gather and reduction == "none":
        raise ValueError(
            "reduction: 'none' not with gather=True, whose gradient is that of one global loss"
        )


def check_choice(name: str, value: str) -> None:
    """Raise a ValueError unless the option `name` knows the value."""
    if value not in CHOICES[name]:
        raise ValueError(f"{name}: expected one of {CHOICES[name]}, got {value!r}")
