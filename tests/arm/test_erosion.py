"""The energy profile by hand, and of networks without an eroded border."""

import pytest
import torch
from torch import nn

from unmuddle import attach_arm
from unmuddle.arm import erosion


def blur(padding_mode: str) -> nn.Conv2d:
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False, padding_mode=padding_mode)
    nn.init.ones_(conv.weight)
    return conv


def test_by_hand() -> None:
    found = erosion(blur("zeros"), [torch.ones(2, 1, 5, 5), (torch.ones(1, 1, 5, 5), "labels")])
    square = torch.tensor([16.0, 36, 81])  # of 4, 6 and 9 neighbours, itself among them
    mean = (4 * square[0] + 12 * square[1] + 9 * square[2]) / 25
    border = (4 * square[0] + 12 * square[1]) / 16
    torch.testing.assert_close(found.by_distance, torch.stack([border, *square[[2, 2]]]) / mean)
    assert found.pixels.tolist() == [16, 8, 1]
    torch.testing.assert_close(found.energy.mean(), torch.tensor(1.0))
    assert found.energy[0, 0] == found.energy[4, 4]


def test_circular_padding_erodes_nothing() -> None:
    found = erosion(blur("circular"), [torch.ones(1, 1, 6, 4)])
    torch.testing.assert_close(found.by_distance, torch.ones(2))


def test_an_attached_network_is_taken_at_its_map_and_stays_in_its_mode() -> None:
    cnn = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16))
    model = attach_arm(cnn, 2, input_size=16, features=cnn)
    images = torch.randn(4, 3, 16, 16)
    found = erosion(model, [images])
    assert torch.equal(found.energy, erosion(cnn, [images]).energy)
    assert all(module.training for module in model.modules())
    assert model.features[1].num_batches_tracked == 0


def test_wrong_input_is_named() -> None:
    with pytest.raises(TypeError, match="model: expected an nn.Module, got str"):
        erosion("resnet18", [])
    with pytest.raises(ValueError, match="loader: expected at least one image, got none"):
        erosion(blur("zeros"), [])
    with pytest.raises(ValueError, match=r"expected a feature map \(N, C, h, w\), got \(2, 16\)"):
        erosion(nn.Flatten(), [torch.zeros(2, 1, 4, 4)])
    sizes = [torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1)]  # which would broadcast
    with pytest.raises(ValueError, match=r"images of one size, got maps of \(4, 4\) and \(1, 1\)"):
        erosion(blur("zeros"), sizes)
    with pytest.raises(ValueError, match=r"batches of images \(N, C, H, W\), got \(1, 4, 4\)"):
        erosion(blur("zeros"), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="batches of images .* got dict"):
        erosion(blur("zeros"), [{"x": torch.zeros(2, 1, 4, 4)}])
    for value in (0.0, torch.nan):
        with pytest.raises(ValueError, match="its map is all zero, or not finite"):
            erosion(blur("zeros"), [torch.full((1, 1, 4, 4), value)])
