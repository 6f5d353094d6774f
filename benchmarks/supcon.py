"""SupConLoss against the dense eager computation: agreement first, then time, on this machine."""

import torch
from torch import Tensor

from timing import alternating_medians
from unmuddle import supcon_loss

DIM, TEMPERATURE = 128, 0.07


def dense_eager(features: Tensor, labels: Tensor) -> Tensor:
    """Eq. 2 as usually written: several N x N matrices."""
    z = torch.nn.functional.normalize(features)
    logits = z @ z.T / TEMPERATURE
    logits = logits - logits.amax(1, keepdim=True).detach()
    others = ~torch.eye(len(z), dtype=torch.bool)
    positive = (labels[:, None] == labels) & others
    log_probability = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    return -((log_probability * positive).sum(1) / positive.sum(1)).mean()


def forward_backward(loss, features: Tensor, labels: Tensor) -> Tensor:
    """The gradient of one call."""
    return torch.autograd.grad(loss(features, labels), features)[0]


def ours(features: Tensor, labels: Tensor) -> Tensor:
    """What a user gets without choosing."""
    return supcon_loss(features, labels, temperature=TEMPERATURE)


def main() -> None:
    """Print a Markdown table."""
    print(f"SupConLoss, fp32, D = {DIM}, {torch.get_num_threads()} threads, forward + backward\n")
    print("| N | dense eager, ms | unmuddle, ms | ratio |\n|---|---|---|---|")
    for n in (64, 256, 1024, 4096, 8192):
        torch.manual_seed(n)
        features = torch.randn(n, DIM, requires_grad=True)
        labels = torch.randint(8, (n,))
        torch.testing.assert_close(
            forward_backward(ours, features, labels),
            forward_backward(dense_eager, features, labels),
            rtol=1e-3,
            atol=1e-6,
        )
        medians = alternating_medians(
            {
                "eager": lambda f=features, y=labels: forward_backward(dense_eager, f, y),
                "ours": lambda f=features, y=labels: forward_backward(ours, f, y),
            },
            repeats=5 if n > 2000 else 30,
        )
        eager, tiled = medians["eager"] * 1e3, medians["ours"] * 1e3
        print(f"| {n} | {eager:.1f} | {tiled:.1f} | {eager / tiled:.1f} |")


if __name__ == "__main__":
    main()
