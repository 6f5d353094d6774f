"""Label noise model, and the posterior of the true class given a label and a prediction.

A label y is right with probability 1 - ε. A wrong label is drawn from row k of a confusion matrix
D, where k is the true class. The prediction p is sharpened by β and shifted by a class bias b:

    q = softmax(β log p + b)    P(y | k) = 1 - ε if y = k, else ε D[k, y]
    P(y) = Σ_k q[k] P(y | k)    P(k | y) = q[k] P(y | k) / P(y)

`fit_noise` estimates ε and D from contradictions: samples whose predicted class is not their
label. β and b maximise the likelihood of the given labels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from unmuddle.uerm.distribution import Distribution, to_probabilities
from unmuddle.uerm.inputs import to_integers

FITTED = 16_384  # size of the random subset that β and b are fitted to
FLOOR = 2**-17  # lower bound of probabilities: half the resolution of a history
# Divergence of contradictions from uniform, in nats: noise is symmetric up to EVEN and
# class-conditional from UNEVEN on.
EVEN, UNEVEN = 0.1, 0.3


class NoiseModel(NamedTuple):
    """Label noise model; see `fit_noise`.

    Attributes:
        rate: ε, the share of wrong labels.
        confusion: `(K, K)` matrix D. Row k is the distribution of the wrong labels of class k.
        sharpness: inverse temperature β. It exceeds 1 for underconfident predictions.
        bias: `(K,)` log weights b of the classes; 0 for class-conditional noise.
    """

    rate: Tensor
    confusion: Tensor
    sharpness: Tensor
    bias: Tensor


def fit_noise(predictions: Distribution, labels: Tensor, num_classes: int) -> NoiseModel:
    """Fit the noise model to given labels and predictions of their samples.

    ε is the share of contradicted labels among confident predictions: those at or above the median
    confidence of the predictions that agree with their label. The prior is one wrong label in ten.

    If these contradictions are spread evenly over the classes, the noise is symmetric and D is
    uniform. If they concentrate on some classes, it is class-conditional and D follows them.

    b corrects how often each class is predicted. Class-conditional noise is confounded with it, so
    b is scaled down as the noise becomes class-conditional.

    A model that has memorised the labels hides their noise. Samples without a prediction, whose
    probabilities are all 0, are not counted. The fit takes 20 K² bytes.

    Args:
        predictions: predictions for n samples.
        labels: `(n,)` original labels.
        num_classes: number of classes K.

    Raises:
        ValueError: there are fewer than two classes, the predictions are not probabilities, or the
            labels are not integers from 0 to K - 1.

    Examples:
        >>> p, y = torch.eye(2)[torch.arange(1000) % 2], torch.arange(1000) % 2
        >>> y[:200] = 1 - y[:200]  # a fifth is contradicted
        >>> round(float(fit_noise(Distribution(p), y, 2).rate), 2)
        0.2
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    predictions = to_probabilities(predictions, num_classes)
    labels = to_integers("labels", labels, num_classes, len(predictions.probabilities))
    return fit_checked(predictions, labels, num_classes)


@torch.inference_mode(False)
def fit_checked(predictions: Distribution, labels: Tensor, num_classes: int) -> NoiseModel:
    """Fit the noise model to validated input."""
    confidence, predicted = predictions.best()
    seen = (confidence > 0).nonzero()[:, 0]
    confidence, predicted, given = confidence[seen], predicted[seen], labels[seen]

    agrees = predicted == given
    confident = confidence >= (confidence[agrees].median() if agrees.any() else 0)
    rate = ((confident & ~agrees).sum() + 1) / (confident.sum() + 10).double()

    cells = torch.bincount((predicted * num_classes + given)[confident], minlength=num_classes**2)
    wrong = cells.view(num_classes, num_classes).float().fill_diagonal_(0)
    uneven, uniform = _unevenness(wrong), 1 / (num_classes - 1)
    shares = (wrong + 2 * uniform) / (wrong.sum(1, keepdim=True) + 2)
    confusion = (uneven * shares + (1 - uneven) * uniform).fill_diagonal_(0)

    model = NoiseModel(rate, confusion, torch.ones_like(rate), rate.new_zeros(num_classes))
    if len(seen) > FITTED:
        generator = torch.Generator().manual_seed(0)  # data sets are often sorted by class
        drawn = torch.randperm(len(seen), generator=generator, device="cpu")[:FITTED]
        seen = seen[drawn.to(seen.device)]
    return fit_likelihood(predictions.rows(seen), labels[seen], model, 1 - uneven)


def posterior(predictions: Distribution, labels: Tensor, model: NoiseModel) -> Distribution:
    """Return `P(k | y)`: the distribution of each sample's true class, given its label y.

    Examples:
        >>> p, y = torch.tensor([[0.98, 0.02]]), torch.tensor([1])
        >>> other = 1 - torch.eye(2)
        >>> plain = NoiseModel(torch.tensor(0.1), other, torch.tensor(1.0), torch.zeros(2))
        >>> posterior(Distribution(p), y, plain).probabilities
        tensor([[0.8448, 0.1552]])
    """
    p = predictions.with_label(labels, len(model.confusion))
    model = NoiseModel(*(value.float() for value in model))
    log_p = p.probabilities.float().clamp(min=FLOOR).log()
    bias = model.bias if p.classes is None else model.bias[p.classes.long()]
    q = (model.sharpness * log_p + bias).softmax(1)
    joint = q * _label_given_class(p, labels, model)
    return Distribution(joint / joint.sum(1, keepdim=True), p.classes)


def transition_matrix(
    posterior: Distribution, labels: Tensor, num_classes: int, *, verified: Tensor, truth: Tensor
) -> Tensor:
    """Estimate `T[k, y] = P(label y | class k)`, a `(K, K)` matrix.

    `T[k, y]` is proportional to the sum of `P(k | y)` over the samples with label y. A verified
    sample counts for its true class. The prior is ten samples of each class, one of them with a
    wrong label.

    Args:
        posterior: `P(k | y)` for n samples.
        labels: `(n,)` original labels y.
        num_classes: number of classes K.
        verified: `(n,)` True for samples whose label a person verified.
        truth: `(n,)` labels that the person chose; used only for verified samples.

    Examples:
        >>> p = Distribution(torch.eye(2).repeat_interleave(90, 0))
        >>> y = (torch.arange(180) >= 60).long()  # a third of class 0 is labeled 1
        >>> transition_matrix(p, y, 2, verified=torch.zeros(180, dtype=torch.bool), truth=y)
        tensor([[0.6900, 0.3100],
                [0.0100, 0.9900]])
    """
    right = torch.eye(num_classes, dtype=torch.float64, device=labels.device)
    counts = 9 * right + (1 - right) / (num_classes - 1)  # rows are labels, columns are classes
    p = posterior.probabilities.double().masked_fill(verified[:, None], 0)
    if posterior.classes is None:
        counts.index_add_(0, labels, p)
    else:
        cells = labels[:, None] * num_classes + posterior.classes.long()
        counts.view(-1).index_add_(0, cells.flatten(), p.flatten())
    known = (labels * num_classes + truth)[verified]
    counts += torch.bincount(known, minlength=num_classes**2).view_as(counts)
    return (counts / counts.sum(0)).T.contiguous().float()


def fit_likelihood(
    predictions: Distribution, labels: Tensor, model: NoiseModel, symmetry: Tensor | float
) -> NoiseModel:
    """Maximise the likelihood of the labels over β and b, given ε and D.

    The priors are log-normal around 2 and standard normal. Classes that a top-k history forgot
    share the remaining probability evenly. `symmetry` scales b.
    """
    classes = len(model.confusion)
    p = predictions.with_label(labels, classes)
    forgotten = classes - p.probabilities.shape[1]
    rest = (1 - p.probabilities.double().sum(1, keepdim=True)) / max(forgotten, 1)
    log_p = torch.cat([p.probabilities.double(), rest], 1).clamp(min=FLOOR).log()
    log_size = torch.zeros_like(log_p[:1])
    log_size[:, -1] = forgotten
    log_size[:, -1].log_()
    wrong = (model.rate / (classes - 1)).expand(len(labels), 1)
    of_label = torch.cat([_label_given_class(p, labels, model), wrong], 1)
    log_sharpness = log_p.new_tensor(0.7, requires_grad=True)
    bias = log_p.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_sharpness, bias], max_iter=100, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        of_class = symmetry * (bias if p.classes is None else bias[p.classes.long()])
        shift = pad(of_class.expand(len(labels), -1), (0, 1)) + log_size
        q = (log_sharpness.exp() * log_p + shift).softmax(1)
        likelihood = (q * of_label).sum(1).log().sum()
        prior = -2 * (log_sharpness - 0.7).square() - bias.square().sum() / 2
        value = -(likelihood + prior) / max(len(labels), 1)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]  a tensor is as good as a float
    return model._replace(sharpness=log_sharpness.detach().exp(), bias=symmetry * bias.detach())


def _unevenness(wrong: Tensor) -> Tensor:
    """Return 0 for symmetric and 1 for class-conditional contradictions `(K, K)`.

    The measure is the Kullback-Leibler divergence of the rows from uniform, in nats, minus its
    expectation if each cell were a Poisson variable with the mean of its row.
    """
    of_class = wrong.sum(1, keepdim=True)
    mean = (of_class / (len(wrong) - 1)).clamp(min=1e-9)
    divergence = torch.special.xlogy(wrong, wrong / mean).sum()
    count = torch.arange(1, 64, device=wrong.device)
    probability = (count * mean.log() - mean - torch.lgamma(count + 1.0)).exp()
    expected = (probability * count * (count / mean).log()).sum(1, keepdim=True)
    expected = torch.where(mean < 20, expected, 0.5).sum() * (len(wrong) - 1)
    nats = (divergence - expected) / of_class.sum().clamp(min=1)
    return ((nats - EVEN) / (UNEVEN - EVEN)).clamp(0, 1)


def _label_given_class(p: Distribution, labels: Tensor, model: NoiseModel) -> Tensor:
    """Return the likelihood P(y | k) `(n, k)` of each sample's label for its entries' classes."""
    if p.classes is None:
        wrong = model.confusion.T[labels]
        return (model.rate * wrong).scatter(1, labels[:, None], (1 - model.rate).item())
    classes = p.classes.long()
    wrong = model.rate * model.confusion[classes, labels[:, None]]
    return torch.where(classes == labels[:, None], 1 - model.rate, wrong)
