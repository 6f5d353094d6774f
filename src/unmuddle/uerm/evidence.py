"""Evidence about every sample at the end of an epoch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unmuddle.uerm.calibration import calibrate
from unmuddle.uerm.distribution import Distribution, to_probabilities
from unmuddle.uerm.inputs import to_integers
from unmuddle.uerm.noise import fit_checked, posterior


class Evidence(NamedTuple):
    """Evidence about n samples and K classes.

    Attributes:
        predictions: running mean of each sample's predictions.
        posterior: `P(k | y)`, the distribution of each sample's true class given its original
            label, by the noise model, calibrated on verified labels.
        original: `(n,)` original labels.
        current: `(n,)` current labels.
        num_classes: number of classes K.
        uncertainty: `(n,)` uncertainty of the current labels in [0, 1], set by the estimator.
        importance: `(n,)` running mean of the attention head's output, for `"attention"`.
    """

    predictions: Distribution
    posterior: Distribution
    original: Tensor
    current: Tensor
    num_classes: int
    uncertainty: Tensor
    importance: Tensor | None = None

    def about(self, current: Tensor) -> "Evidence":
        """Return the evidence with other current labels `(n,)`.

        The uncertainty is reset to `1 - P(label is right)`.
        """
        wrong = (1 - self.posterior.prob_of(current)).clamp(0, 1)
        return self._replace(current=current, uncertainty=wrong)

    def copy(self) -> "Evidence":
        """Return a copy with all tensors cloned."""

        def copied(value: Any) -> Any:
            if isinstance(value, Distribution):
                return Distribution(*(copied(entry) for entry in value))
            return value.clone() if isinstance(value, Tensor) else value

        return Evidence(*(copied(value) for value in self))


def gather_evidence(
    predictions: Distribution,
    original: Tensor,
    num_classes: int,
    *,
    current: Tensor | None = None,
    verified: Tensor | None = None,
    importance: Tensor | None = None,
) -> Evidence:
    """Fit the noise model to predictions and labels, and calibrate its posterior.

    The uncertainty is `1 - P(label is right)`.

    Args:
        predictions: predictions of any classifier, ideally out of sample or averaged over training.
        original: `(n,)` original labels.
        num_classes: number of classes K.
        current: `(n,)` current labels; `None` stands for the original labels.
        verified: `(n,)` True for samples whose current label a person verified. The posterior is
            calibrated on these samples.
        importance: see `Evidence`.

    Raises:
        ValueError: predictions are not probabilities, or a shape, dtype or label is invalid.

    Examples:
        >>> p = Distribution(torch.eye(2)[[0, 0, 0, 1, 1, 1]] * 0.98 + 0.01)
        >>> gather_evidence(p, torch.tensor([0, 0, 0, 1, 1, 0]), 2).uncertainty.argmax()
        tensor(5)
    """
    predictions = to_probabilities(predictions, num_classes)
    n = len(predictions.probabilities)
    original = to_integers("original", original, num_classes, n)
    current = original if current is None else to_integers("current", current, num_classes, n)
    if verified is not None and (verified.dtype != torch.bool or verified.shape != (n,)):
        raise ValueError(
            f"verified: expected booleans of shape (n,) = ({n},), "
            f"got {verified.dtype} {tuple(verified.shape)}"
        )
    likely = posterior(predictions, original, fit_checked(predictions, original, num_classes))
    if verified is not None:
        likely = calibrate(likely, original, num_classes, verified=verified, truth=current)
    unknown = torch.zeros(len(original), device=original.device)
    known = Evidence(predictions, likely, original, current, num_classes, unknown, importance)
    return known.about(current)
