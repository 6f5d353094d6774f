"""Augmentation of whole batches: each image its own, shades taken out."""

import torch

from unmuddle.recipe import images as im
from unmuddle.recipe.images import CHANCES, Standardize, augment

standardize = Standardize()


def faces(n: int = 64, size: int = 24) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(60, 120, (n, 3, size, size), generator=g, dtype=torch.uint8)


def chances(n: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, CHANCES, generator=torch.Generator().manual_seed(seed))


def test_a_darker_image_is_the_same_image() -> None:
    bright = 40 + 2 * (faces(4) // 2)
    dark = bright // 2
    found = standardize(dark)
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    correlation = (found * standardize(bright)).mean((1, 2, 3)) / (
        found.std((1, 2, 3)) * standardize(bright).std((1, 2, 3))
    )
    assert (correlation > 0.99).all()
    assert standardize(torch.full((1, 3, 4, 4), 7, dtype=torch.uint8)).abs().max() < 1e-5


def test_a_pretrained_network_gets_the_pixels_that_it_expects() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None].expand(3, 4, 5)[None]
    found = Standardize([0.5, 0.2, 0.0], [0.5, 0.1, 2.0])(images)
    torch.testing.assert_close(found[0, :, 2, 3], torch.tensor([-1.0, 0.0, 0.5]))


def test_every_image_is_augmented_by_its_own_chances() -> None:
    one = standardize(faces(1)).repeat(8, 1, 1, 1)
    drawn = chances(8)
    whole = augment(one, drawn, mirror=True)
    assert len({image.sum().item() for image in whole}) == 8
    parts = [augment(one[part], drawn[part], mirror=True) for part in (slice(3), slice(3, 8))]
    assert torch.equal(whole, torch.cat(parts))


def test_without_strength_images_are_at_most_mirrored() -> None:
    plain = standardize(faces())
    same = augment(plain, chances(), mirror=False, strength=0)
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=0)
    mirrored = augment(plain, chances(), mirror=True, strength=0)
    is_plain = (mirrored - plain).abs().amax((1, 2, 3)) < 1e-4
    is_mirror = (mirrored - plain.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (is_plain | is_mirror).all()
    assert 16 < int(is_mirror.sum()) < 48


def test_half_of_the_images_lose_a_box(monkeypatch) -> None:
    for name in ("TURN", "ZOOM", "SHIFT", "BRIGHTNESS"):
        monkeypatch.setattr(im, name, 0.0)
    erased = (
        (augment(standardize(faces(256)), chances(256), mirror=False) == 0)
        .all(1)
        .flatten(1)
        .float()
        .mean(1)
    )
    assert 0.35 < (erased > 0).float().mean() < 0.6
    assert erased.max() <= 0.5**2 + 0.1
