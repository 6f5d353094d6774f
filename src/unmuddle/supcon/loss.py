"""`supcon_loss` and `SupConLoss`: options, choice of backend, shape of the result."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import inf
from numbers import Integral, Real
from operator import attrgetter
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from unmuddle.distributed import is_distributed
from unmuddle.supcon import engine, operators
from unmuddle.supcon.backends.dense import MAX_PAIRS, MAX_PAIRS_GPU
from unmuddle.supcon.distributed import Shard
from unmuddle.supcon.inputs import Batch
from unmuddle.supcon.problem import MAX_KERNEL_DIM, ContrastSet, Options, Reduction

ContrastMode = Literal["all", "one"]
PositivesMode = Literal["out", "in"]
Denominator = Literal["all", "negatives"]
NoPositive = Literal["skip", "zero"]
ReductionMode = Literal["mean", "sum", "none"]
Impl = Literal["auto", "reference", "dense", "tiled", "triton"]
KINDS = {
    "contrast_mode": ContrastMode, "positives": PositivesMode, "denominator": Denominator,
    "no_positive": NoPositive, "reduction": ReductionMode, "impl": Impl,
}  # fmt: skip
CHOICES = {name: get_args(kind) for name, kind in KINDS.items()}
OPTIONS = (
    "temperature", "contrast_mode", "base_temperature", "positives", "denominator", "normalize",
    "no_positive", "ignore_index", "reduction", "gather", "impl",
)  # fmt: skip
SHARP_TEMPERATURE = 1 / 40
BOUNDED_TEMPERATURE = 1 / 41  # from here on, `|s_ij| / ln 2 <= 60` for unit rows


def _has_triton() -> bool:
    """Return whether Triton is installed, in a version that supports fp64 matrix products."""
    try:
        release = version("triton").split(".")[:2] if find_spec("triton") else (0,)
        return [int(part) for part in release] >= [3, 4]
    except PackageNotFoundError:  # a nightly build, whose package has another name
        return True
    except (ImportError, ValueError):  # the import is blocked, or the version is not a number
        return False


HAS_TRITON = _has_triton()
Function = TypeVar("Function", bound=Callable[..., Tensor])


def gathers_outside_graphs(function: Function) -> Function:
    """Disable `torch.compile` for calls with `gather=True`, whose communication breaks graphs."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        leaves = kwargs.get("gather") and torch.compiler.is_compiling()
        outside: Any = torch.compiler.disable(function) if leaves else function
        return outside(*args, **kwargs)

    return cast(Function, call)


@gathers_outside_graphs
def supcon_loss(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    key_weight: Tensor | None = None,
    weight: Tensor | None = None,
    denominator_weight: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    contrast_mode: ContrastMode = "all",
    positives: PositivesMode = "out",
    denominator: Denominator = "all",
    normalize: bool = True,
    no_positive: NoPositive = "skip",
    ignore_index: int = -100,
    reduction: ReductionMode = "mean",
    base_temperature: float | None = None,
    gather: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """Supervised contrastive loss of Khosla et al. 2020.

    Let `z_i` be rows of unit length, `s_ij = z_i · z_j / τ`, and `A(i)` the set of all rows but i.
    Let `w_ij` be the weights of the positives: 1 for rows of the same class and for other views of
    the same sample, else 0. The loss of row i is

        L_i = log sum_{a in A(i)} v_a exp s_ia - sum_p w_ip s_ip / sum_p w_ip        ("out", Eq. 2)
        L_i = log sum_{a in A(i)} v_a exp s_ia - log(sum_p w_ip exp s_ip / sum_p w_ip) ("in", Eq. 3)

    In the paper, the weights `v_a` of the denominator are 1.

    Args:
        features: `(N, D)` embeddings, or `(B, V, D)`: V views of each of B samples, N = B·V rows.
        labels: `(B,)` integer class labels, or `(B, C)` non-negative soft or multi-hot labels
            `y_i`. Soft and multi-hot labels weight the positives by `w_ij = y_i · y_j`; one-hot
            rows are equivalent to integer labels. If both `labels` and `mask` are `None`, the
            positives of a row are the other views of its sample (SimCLR). Receives no gradient.
        mask: `(B, B)` non-negative weights, as an alternative to labels. `mask[i, j]` is the weight
            of sample j as a positive of sample i. The mask need not be symmetric. Receives no
            gradient.
        keys: `(M, D)` additional rows to contrast with, such as a queue or class prototypes. Keys
            are not anchors.
        key_labels: `(M,)` or `(M, C)` labels of the keys, required if `labels` is given. Without
            `labels`, every key is a negative, except keys labelled `ignore_index`. Always pass both
            results of `FeatureQueue.keys()`.
        key_weight: `(M,)` non-negative weights `v` of the keys in the denominator. Default: 1.
            Receives no gradient.
        temperature: `τ > 0`. A scalar tensor may require a gradient, but its value is not checked.
            To keep a learned temperature positive, learn its logarithm.
        contrast_mode: `"all"`: every row is an anchor; `"one"`: only the first view of each sample
            is an anchor.
        positives: average positives outside (`"out"`) or inside (`"in"`) the logarithm.
        denominator: `"all"`: `A(i)` is every other row; `"negatives"`: every row with `w_ij = 0`.
        weight: `(B,)` non-negative weights of the anchors' losses. With `reduction="mean"`, the
            result is the weighted mean; with `reduction="none"`, each loss is multiplied by its
            weight. To weight a sample as a positive, use soft labels.
        denominator_weight: `(B,)` non-negative weights `v` of the samples in the denominator, such
            as the inverse class size. A sample of weight 0 is excluded from the denominator, but
            remains a positive. Default: 1. Receives no gradient.
        normalize: scale rows to unit length; a zero row stays zero and gets a zero gradient.
        no_positive: whether anchors without a positive, or without a term in the denominator, are
            excluded from the mean (`"skip"`) or count as 0 (`"zero"`).
        ignore_index: samples and keys with this label are ignored; for soft labels, these are rows
            filled with it. They are neither anchors, positives nor negatives. Their features must
            still be finite.
        reduction: `"mean"`, `"sum"`, or `"none"`: `(N,)` for `(N, D)` features, `(B, V)` for
            `(B, V, D)`, `(B,)` with `contrast_mode="one"`. With `"none"`, an anchor without a
            positive has a loss of 0. Select anchors with `valid_anchors` before averaging or
            logging the losses.
        base_temperature: if given, the loss is multiplied by `τ / base_temperature`.
        gather: contrast with the samples of all `torch.distributed` processes. Every process
            returns the loss of the global batch. Averaged over the processes, as by
            `DistributedDataParallel`, the gradients equal those of one process with the global
            batch. Local batches may differ in size. Keys must be the same in all processes.
        impl: `"dense"` (all pairs at once), `"tiled"` (O(N·D) memory), `"triton"` (the same in CUDA
            kernels), `"reference"` (the equation in fp64), or `"auto"` (see `choose_impl`). With
            `create_graph=True`, every backend needs as much memory as `"reference"`, which holds
            several fp64 matrices of all pairs.

    Returns:
        The loss in fp32, or in fp64 for fp64 features. If no anchor has a positive, the loss is 0
        and its gradient is zero. NaN in the input propagates to the loss.

    Raises:
        ValueError: a shape or an option is invalid.
        TypeError: `features` are not floating point, or `(B,)` labels are not integers.
        RuntimeError: another process rejected its input (`gather=True`), or `create_graph=True` is
            combined with `gather=True`.

    Examples:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(supcon_loss(z, torch.tensor([0, 0, 1, 1]), temperature=1.0).item(), 4)
        0.5514

    References:
        Khosla et al., Supervised Contrastive Learning, 2020, arXiv 2004.11362, Eq. 2 and 3.
    """
    check_options(
        temperature=temperature, contrast_mode=contrast_mode, positives=positives,
        denominator=denominator, normalize=normalize, no_positive=no_positive,
        ignore_index=ignore_index, reduction=reduction, base_temperature=base_temperature,
        gather=gather, impl=impl,
    )  # fmt: skip
    batch, shard = Batch(
        features, labels, mask, weight, denominator_weight, keys, key_labels, key_weight
    ), None  # fmt: skip
    if gather and is_distributed():
        batch, shard = batch.gathered()
    else:
        batch = batch.checked()
    views = features.shape[1] if features.ndim == 3 else 1
    contrast, options, shard = _plan(
        batch, batch.contrast_set(ignore_index), shard, temperature, normalize, positives,
        denominator, ignore_index, impl,
    )  # fmt: skip
    included = None if contrast.included is None else contrast.included[: options.anchors]
    skips_views, counts_zeros = contrast_mode == "one", no_positive == "zero"
    to_result = Reduction(reduction, included, batch.weight, views, skips_views, counts_zeros)
    on = contrast.x.device.type
    with torch.autocast(on, enabled=False) if torch.is_autocast_enabled(on) else nullcontext():
        if options.impl == "reference":
            loss = engine.reference_loss(contrast, options, to_result)
        elif options.impl != "dense" and torch.compiler.is_compiling():
            loss = operators.loss(contrast, options, to_result)
        else:
            loss = engine.Loss.apply(*contrast, options, to_result, shard)
    if base_temperature is not None:
        tau = temperature.to(loss) if isinstance(temperature, Tensor) else float(temperature)
        loss = loss * (tau / base_temperature)
    if loss.dtype == torch.float64 and features.dtype != torch.float64:
        loss = loss.float()
    if reduction == "none" and contrast_mode == "one":
        return loss[::views]
    if reduction == "none" and features.ndim == 3:
        return loss.unflatten(0, features.shape[:2])
    return loss


def _plan(
    batch: Batch,
    contrast: ContrastSet,
    shard: Shard | None,
    temperature: float | Tensor,
    normalize: bool,
    positives: PositivesMode,
    denominator: Denominator,
    ignore_index: int,
    impl: Impl,
) -> tuple[ContrastSet, Options, Shard | None]:
    """Return the contrast set with the temperature, the options, and the shard of this process."""
    x, is_classed = contrast.x, contrast.labels is not None and contrast.labels.ndim == 1
    total = x.shape[0]
    anchors = total - (0 if batch.keys is None else len(batch.keys))
    # Speed does not matter without pairs, and torch.func transforms may need any derivative.
    is_transformed = torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
    chosen = choose_impl(
        impl if total > 1 and not is_transformed else "reference",
        x.device,
        pairs=anchors * total if shard is None else 2**62,
        dim=x.shape[1],
        weighs_pairs=not is_classed and (positives != "out" or denominator != "all"),
    )
    if chosen in ("reference", "dense"):
        shard = None  # every process computes the full loss
    dtype, product_dtype = _dtypes(batch.features, anchors * total, temperature, chosen)
    is_tensor = isinstance(temperature, Tensor)
    trains_temperature = is_tensor and temperature.requires_grad
    inv_temperature = (
        temperature.to(x.device, dtype).reciprocal() if is_tensor else 1 / float(temperature)
    )
    options = Options(
        anchors=anchors,
        normalize=normalize,
        is_bounded=normalize
        and (positives, denominator) == ("out", "all")
        and contrast.denominator_weight is None
        and not is_tensor
        and bool(temperature >= BOUNDED_TEMPERATURE),
        ignore_index=-1 if batch.labels is None else ignore_index,  # samples are numbered from 0
        dtype=dtype,
        positives=positives,
        denominator=denominator,
        product_dtype=product_dtype,
        impl=chosen,
        needs_grad=torch.is_grad_enabled() and (x.requires_grad or trains_temperature),
        keys_need_grad=trains_temperature or (batch.keys is not None and batch.keys.requires_grad),
        temperature_needs_grad=trains_temperature,
    )
    return contrast._replace(inv_temperature=inv_temperature), options, shard


def check_options(
    *, temperature: Any = 1.0, base_temperature: float | None = None, **options: Any
) -> None:
    """Raise a ValueError that names the first invalid option."""
    for name, choices in CHOICES.items():
        if name in options and options[name] not in choices:
            raise ValueError(f"{name}: expected one of {choices}, got {options[name]!r}")
    if isinstance(temperature, Tensor) and temperature.ndim:
        shape = tuple(temperature.shape)
        raise ValueError(f"temperature: expected a number or a scalar tensor, got shape {shape}")
    base = 1.0 if base_temperature is None else base_temperature
    for name, value in (("temperature", temperature), ("base_temperature", base)):
        is_number = isinstance(value, (float, int, Real)) and not isinstance(value, bool)
        if not ((is_number and 0 < float(value) < inf) or isinstance(value, Tensor)):
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
    for name in ("normalize", "gather"):
        if name in options and not isinstance(options[name], bool):
            raise ValueError(f"{name}: expected True or False, got {options[name]!r}")
    if not isinstance(options.get("ignore_index", 0), Integral):
        raise ValueError(f"ignore_index: expected an integer, got {options['ignore_index']!r}")
    if options.get("gather") and options["reduction"] == "none":
        raise ValueError("reduction: 'none' is not supported with gather=True")


def choose_impl(
    impl: Impl = "auto",
    device: torch.device | str = "cpu",
    *,
    pairs: int = 2**62,
    dim: int = 128,
    weighs_pairs: bool = False,
) -> str:
    """Return the name of the backend that `impl` selects; explicit names are returned unchanged.

    Args:
        impl: the option of `supcon_loss`.
        device: device of the features.
        pairs: number of anchors times number of rows, N² without keys. `"auto"` selects `"dense"`
            for up to 512² pairs on a CPU and up to 2048² on other devices. The default stands for a
            large batch.
        dim: feature dimension D.
        weighs_pairs: whether soft labels or a mask are combined with `positives="in"` or
            `denominator="negatives"`, which the Triton kernels do not support.

    Raises:
        ValueError: `impl` is unknown.

    Examples:
        >>> choose_impl("auto", "cpu"), choose_impl("auto", "cpu", pairs=256**2)
        ('tiled', 'dense')
    """
    if impl not in CHOICES["impl"]:
        raise ValueError(f"impl: expected one of {CHOICES['impl']}, got {impl!r}")
    if impl != "auto":
        return impl
    kind = torch.device(device).type
    if pairs <= (MAX_PAIRS if kind == "cpu" else MAX_PAIRS_GPU):
        return "dense"
    suits_kernels = kind == "cuda" and dim <= MAX_KERNEL_DIM and not weighs_pairs
    return "triton" if suits_kernels and HAS_TRITON else "tiled"


def _dtypes(
    features: Tensor, pairs: int, temperature: float | Tensor, impl: str
) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype of the computation and that of the operands of large matrix products.

    The computation runs in fp32. It runs in fp64 for the reference, for fp64 features, and where
    fp64 costs little and the rounding of similarities would affect the gradient.
    """
    autocast = torch.is_autocast_enabled(features.device.type)
    is_single = features.dtype == torch.float32 and not autocast
    is_sharp = not isinstance(temperature, Tensor) and temperature < SHARP_TEMPERATURE
    feels_rounding = is_sharp and is_single and pairs <= MAX_PAIRS
    is_double = impl == "reference" or features.dtype == torch.float64 or feels_rounding
    working = torch.float64 if is_double else torch.float32
    if features.dtype == torch.float32 and autocast:
        return working, torch.get_autocast_dtype(features.device.type)
    return working, features.dtype if torch.finfo(features.dtype).bits == 16 else working


class SupConLoss(nn.Module):
    """Supervised contrastive loss as a module.

    See `supcon_loss` for the equation, the options and the errors.

    Args:
        temperature: `τ`. Pass an `nn.Parameter` to learn it.
        contrast_mode: `"all"` or `"one"`.
        base_temperature: if given, the loss is multiplied by `τ / base_temperature`.
        positives: `"out"` or `"in"`.
        denominator: `"all"` or `"negatives"`.
        normalize: scale embeddings to unit length.
        no_positive: `"skip"` or `"zero"`.
        ignore_index: label of samples to ignore.
        reduction: `"mean"`, `"sum"` or `"none"`.
        gather: contrast with the samples of all processes.
        impl: `"auto"`, `"reference"`, `"dense"`, `"tiled"` or `"triton"`.

    Examples:
        >>> import torch
        >>> loss = SupConLoss(temperature=0.1)
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        contrast_mode: ContrastMode = "all",
        base_temperature: float | None = None,
        *,
        positives: PositivesMode = "out",
        denominator: Denominator = "all",
        normalize: bool = True,
        no_positive: NoPositive = "skip",
        ignore_index: int = -100,
        reduction: ReductionMode = "mean",
        gather: bool = False,
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature
        self.positives = positives
        self.denominator = denominator
        self.normalize = normalize
        self.no_positive = no_positive
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.gather = gather
        self.impl = impl
        check_options(**self._options())

    def forward(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        keys: Tensor | None = None,
        key_labels: Tensor | None = None,
        key_weight: Tensor | None = None,
        weight: Tensor | None = None,
        denominator_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of `(N, D)` or `(B, V, D)` features; see `supcon_loss` for arguments."""
        return supcon_loss(
            features, labels, mask=mask, keys=keys, key_labels=key_labels, key_weight=key_weight,
            weight=weight, denominator_weight=denominator_weight, **self._options(),
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the options shown by `repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items())

    def _options(self) -> dict[str, Any]:
        return dict(zip(OPTIONS, attrgetter(*OPTIONS)(self), strict=True))
