"""`supcon_loss` and `SupConLoss`: options, choice of backend, shape of the result."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from numbers import Real
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
BOUNDED_TEMPERATURE = 1 / 41  # from which similarities of unit rows are at most 60 bits


def _has_triton() -> bool:
    """Return whether Triton is installed in a version that multiplies fp64."""
    try:
        release = version("triton").split(".")[:2] if find_spec("triton") else (0,)
        return [int(part) for part in release] >= [3, 4]
    except PackageNotFoundError:  # a nightly build, which has another name
        return True
    except (ImportError, ValueError):  # blocked
        return False


HAS_TRITON = _has_triton()
Function = TypeVar("Function", bound=Callable[..., Tensor])


def gathers_outside_graphs(function: Function) -> Function:
    """Leave `torch.compile` where `gather=True`: no graph holds what processes exchange."""

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

    For rows `z_i` of unit length, `s_ij = z_i · z_j / τ`, all other rows `A(i)` and weights `w_ij`
    of the positives (1 for rows of the same class and other views of the same sample, else 0):

        L_i = log sum_{a in A(i)} v_a exp s_ia - sum_p w_ip s_ip / sum_p w_ip        ("out", Eq. 2)
        L_i = log sum_{a in A(i)} v_a exp s_ia - log(sum_p w_ip exp s_ip / sum_p w_ip) ("in", Eq. 3)

    The weights of the denominator `v_a` are 1 in the paper.

    Args:
        features: `(N, D)` embeddings, or `(B, V, D)`: V views of each of B samples, N = B·V rows.
        labels: `(B,)` integer classes; or `(B, C)` soft or multi-hot memberships `y_i >= 0`, which
            weigh positives by `w_ij = y_i · y_j` (one-hot rows are the integer case). `None` with
            no mask: the views of one sample are its positives (SimCLR). No gradient.
        mask: `(B, B)` non-negative weights instead of labels; `mask[i, j]` is how much sample j is
            a positive of sample i. Need not be symmetric. No gradient.
        keys: `(M, D)` more rows to contrast with, such as a queue or prototypes of the classes.
            They are no anchors.
        key_labels: `(M,)` or `(M, C)` labels of the keys, needed where `labels` are given. Without
            labels every key is a negative, except for those labelled `ignore_index`: give both
            results of `FeatureQueue.keys()`.
        key_weight: `(M,)` non-negative weights `v` of the keys in the denominator. Default: 1. No
            gradient.
        temperature: `τ > 0`; a scalar tensor may require a gradient (its value is not checked:
            train its logarithm to keep it positive).
        contrast_mode: `"all"`: every row is an anchor; `"one"`: the first view of each sample is.
        positives: average positives outside (`"out"`) or inside (`"in"`) the logarithm.
        denominator: `"all"`: `A(i)` is every other row; `"negatives"`: every row with `w_ij = 0`.
        weight: `(B,)` non-negative weights of the anchors' losses; `"mean"` is the weighted mean,
            and with `reduction="none"` each loss is multiplied by its weight. What a sample weighs
            as a positive is set by soft labels.
        denominator_weight: `(B,)` non-negative weights `v` of the samples in the denominator, such
            as `1 / size of the class`. A sample of weight 0 is no term of it, but remains a
            positive. Default: 1. No gradient.
        normalize: scale rows to unit length; a zero row stays zero and gets a zero gradient.
        no_positive: anchors without a positive, or without a term in the denominator, are left out
            of the mean (`"skip"`) or count as 0 (`"zero"`).
        ignore_index: samples and keys of this label (soft: rows filled with it) take no part: no
            anchor, positive or negative. Their features must be finite all the same.
        reduction: `"mean"`, `"sum"`, or `"none"`: `(N,)` for `(N, D)` features, `(B, V)` for
            `(B, V, D)`, `(B,)` with `contrast_mode="one"`. With `"none"` an anchor without a
            positive has a loss of 0: select with `valid_anchors` before you average or log.
        base_temperature: if given, the loss is multiplied by `τ / base_temperature`.
        gather: contrast with the samples of all processes of `torch.distributed`. Every process
            gets the loss of the global batch; averaged over the processes, as
            `DistributedDataParallel` does, gradients are those of one process holding that batch.
            Local batches may differ in size. Keys must be the same everywhere.
        impl: `"dense"` (all pairs at once), `"tiled"` (O(N·D) memory), `"triton"` (the same on
            CUDA), `"reference"` (the equation in fp64), or `"auto"`, which `choose_impl` resolves.
            With `create_graph=True` every one takes the memory of `"reference"`, which holds
            several fp64 matrices of all pairs.

    Returns:
        The loss in fp32 (fp64 for fp64 features). 0 with zero gradient when no anchor has a
        positive. NaN in gives NaN out.

    Raises:
        ValueError: a shape or an option does not fit.
        TypeError: `features` is not floating point, or `(B,)` labels are not integer.
        RuntimeError: the input of another process was refused (`gather=True`); or
            `create_graph=True` with `gather=True`.

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
    """Return the contrast set with its temperature, the options, and the part of this process."""
    x, is_classed = contrast.x, contrast.labels is not None and contrast.labels.ndim == 1
    total = x.shape[0]
    anchors = total - (0 if batch.keys is None else len(batch.keys))
    # No pair, nothing to be fast at; a transform of torch.func may want any derivative.
    is_transformed = torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
    chosen = choose_impl(
        impl if total > 1 and not is_transformed else "reference",
        x.device,
        pairs=anchors * total if shard is None else 2**62,
        dim=x.shape[1],
        weighs_pairs=not is_classed and (positives != "out" or denominator != "all"),
    )
    if chosen in ("reference", "dense"):
        shard = None  # every process computes the whole
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
    """Raise a ValueError that names the first option out of its range."""
    for name, choices in CHOICES.items():
        if name in options and options[name] not in choices:
            raise ValueError(f"{name}: expected one of {choices}, got {options[name]!r}")
    if isinstance(temperature, Tensor) and temperature.ndim:
        shape = tuple(temperature.shape)
        raise ValueError(f"temperature: expected a number or a scalar tensor, got shape {shape}")
    base = 1.0 if base_temperature is None else base_temperature
    for name, value in (("temperature", temperature), ("base_temperature", base)):
        is_positive = isinstance(value, (float, int, Real)) and float(value) > 0
        if not (is_positive or isinstance(value, Tensor)):
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
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
    """Return the backend that `impl` stands for; an explicit name stands for itself.

    Args:
        impl: the option of `supcon_loss`.
        device: of the features.
        pairs: anchors times rows, N² without keys. `"dense"` takes up to 512² of them, on a GPU up
            to 2048². Default: a large batch.
        dim: D.
        weighs_pairs: soft labels or a mask together with positives="in" or
            denominator="negatives", which the kernels do not support.

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
    """Return the working type and that of the operands of large products.

    The working type is fp32, or fp64 where that costs little and the rounding of a similarity
    shows in the gradient.
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
    """Supervised contrastive loss; equation, options and errors as in `supcon_loss`.

    Args:
        temperature: `τ`; an `nn.Parameter` is trained.
        contrast_mode: `"all"` or `"one"`.
        base_temperature: if given, the loss is multiplied by `τ / base_temperature`.
        positives: `"out"` or `"in"`.
        denominator: `"all"` or `"negatives"`.
        normalize: scale embeddings to unit length.
        no_positive: `"skip"` or `"zero"`.
        ignore_index: label of samples that take no part.
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
        """Return the loss of `(N, D)` or `(B, V, D)` features; tensors as in `supcon_loss`."""
        return supcon_loss(
            features, labels, mask=mask, keys=keys, key_labels=key_labels, key_weight=key_weight,
            weight=weight, denominator_weight=denominator_weight, **self._options(),
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the options shown by `repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items())

    def _options(self) -> dict[str, Any]:
        return dict(zip(OPTIONS, attrgetter(*OPTIONS)(self), strict=True))
