"""`SupConLoss`: holds the options, calls `supcon_loss`."""

from torch import Tensor, nn

from unmuddle.supcon.functional import (
    ContrastMode,
    Denominator,
    Impl,
    NoPositive,
    PositivesMode,
    Reduction,
    check_options,
    supcon_loss,
)


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
        impl: `"auto"`, `"reference"`, `"tiled"` or `"triton"`.

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
        reduction: Reduction = "mean",
        gather: bool = False,
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        check_options(
            temperature=temperature, contrast_mode=contrast_mode, positives=positives,
            denominator=denominator, no_positive=no_positive, reduction=reduction,
            base_temperature=base_temperature, gather=gather, impl=impl,
        )  # fmt: skip
        self.temperature = temperature
        self.contrast_mode: ContrastMode = contrast_mode
        self.base_temperature = base_temperature
        self.positives: PositivesMode = positives
        self.denominator: Denominator = denominator
        self.normalize = normalize
        self.no_positive: NoPositive = no_positive
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.gather = gather
        self.impl: Impl = impl

    def forward(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        keys: Tensor | None = None,
        key_labels: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of `(N, D)` or `(B, V, D)` features; tensors as in `supcon_loss`."""
        return supcon_loss(
            features,
            labels,
            mask=mask,
            keys=keys,
            key_labels=key_labels,
            temperature=self.temperature,
            contrast_mode=self.contrast_mode,
            positives=self.positives,
            denominator=self.denominator,
            weight=weight,
            normalize=self.normalize,
            no_positive=self.no_positive,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            base_temperature=self.base_temperature,
            gather=self.gather,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """Options shown by `repr`."""
        names = ("temperature", "contrast_mode", "base_temperature", "positives", "denominator")
        names += ("normalize", "no_positive", "ignore_index", "reduction", "gather", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
