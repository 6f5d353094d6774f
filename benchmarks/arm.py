"""ARM's shared convolution against one convolution a channel: agreement first, then time."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from timing import alternating_medians
from unmuddle.arm import de_albino


def per_channel_loop(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The published form."""
    parts = [conv2d(x[:, c : c + 1], weight[None, None], stride=stride) for c in range(x.shape[1])]
    return torch.cat(parts, 1)


def main() -> None:
    """Print a Markdown table."""
    torch.manual_seed(0)
    x = torch.randn(64, 2, 112, 112, requires_grad=True)
    weight = torch.randn(32, 32, requires_grad=True)

    def train(step) -> tuple[Tensor, ...]:
        return torch.autograd.grad(step(x, weight, 8).sum(), (x, weight))

    torch.testing.assert_close(
        de_albino(x, weight, 8), per_channel_loop(x, weight, 8), rtol=1e-3, atol=1e-3
    )
    medians = alternating_medians(
        {"loop": lambda: train(per_channel_loop), "ours": lambda: train(de_albino)}, repeats=20
    )
    loop, ours = medians["loop"] * 1e3, medians["ours"] * 1e3
    print(
        f"\nde-albino, (64, 2, 112, 112), {torch.get_num_threads()} threads, forward + backward\n"
    )
    print("| per-channel loop, ms | unmuddle, ms | ratio |\n|---|---|---|")
    print(f"| {loop:.1f} | {ours:.1f} | {loop / ours:.1f} |")


if __name__ == "__main__":
    main()
