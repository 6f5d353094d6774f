"""Evidence about every sample when an epoch ends."""

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
        posterior: `P(k | y)`, the class that each sample really has, given its original label: by
            the noise model that fits the predictions, and by the verified labels.
        original: `(n,)` labels as given.
        current: `(n,)` labels as they stand.
        num_classes: K.
        uncertainty: `(n,)` of the current label, in [0, 1]; what the estimator made of the rest.
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
        """Replace the current labels `(n,)`; the uncertainty is `1 - P(label is right)` again."""
        wrong = (1 - self.posterior.prob_of(current)).clamp(0, 1)
        return self._replace(current=current, uncertainty=wrong)

    def copy(self) -> "Evidence":
        """Copy every tensor."""

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
    """Fit the noise model to predictions and labels, and its posterior to verified labels.

    The uncertainty is `1 - P(label is right)`.

    Args:
        predictions: of any classifier; best out of sample, or averaged over a training.
        original: `(n,)` labels as given.
        num_classes: K.
        current: `(n,)` labels as they stand; `None`: as given.
        verified: `(n,)` True where a person chose the current label; the posterior is calibrated to
            these samples.
        importance: see `Evidence`.

    Raises:
        ValueError: predictions are no probabilities, or a shape, type or label is wrong.

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
