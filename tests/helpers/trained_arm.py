"""Modules as training leaves them."""

import torch

from unmuddle import ARM
from unmuddle.arm import PublishedARM


def trained(make, *arguments, **options) -> ARM | PublishedARM:
    """In eval mode after three training batches, every parameter away from its initial value."""
    torch.manual_seed(0)
    arm = make(*arguments, **options)
    with torch.no_grad():
        for parameter in arm.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    for _ in range(3):
        arm(torch.randn(16, arm.in_channels, *arm.input_size) + 0.5)
    return arm.eval()
