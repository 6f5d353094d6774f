"""What is kept for the report."""

import torch

from unmuddle.recipe.backbones import build_backbone
from unmuddle.recipe.data import LabeledImages
from unmuddle.recipe.model import Classifier
from unmuddle.recipe.snapshot import MAPPED, PICTURED, snapshot
from unmuddle.uerm import LabelLedger


def pieces(n: int, size: int = 16) -> tuple[Classifier, LabeledImages, LabelLedger]:
    torch.manual_seed(0)
    images = torch.randint(256, (n, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(n) % 3
    model = Classifier(build_backbone("small", size), 3, ())
    return model, LabeledImages(images, labels), LabelLedger(labels, 3)


def test_features_are_those_of_the_model_in_eval_mode() -> None:
    model, data, ledger = pieces(20)
    found = snapshot(model.train(), data, ledger, batch_size=8, seed=0)
    assert found["mapped"].tolist() == list(range(20))
    with torch.no_grad():
        expected = model.eval()(model.standardize(data.images)).features
    torch.testing.assert_close(found["features"], expected)


def test_no_more_than_a_page_can_show_and_the_same_each_time() -> None:
    model, data, ledger = pieces(MAPPED + 50)
    changed = torch.arange(0, 2 * (PICTURED + 20), 2)
    ledger.record(changed, (ledger.current_labels[changed] + 1) % 3, epoch=1, rule="test")
    found = snapshot(model, data, ledger, batch_size=64, seed=0)
    assert len(found["mapped"].unique()) == len(found["features"]) == MAPPED
    assert len(found["pictured"].unique()) == PICTURED
    assert set(found["pictured"].tolist()) < set(changed.tolist())
    assert torch.equal(found["thumbnails"], data.images[found["pictured"]])
    again = snapshot(model, data, ledger, batch_size=64, seed=0)
    assert all(torch.equal(found[name], again[name]) for name in found)
    other = snapshot(model, data, ledger, batch_size=64, seed=1)
    assert not torch.equal(found["mapped"], other["mapped"])


def test_large_images_are_made_small_and_none_may_be_relabeled() -> None:
    model, data, ledger = pieces(2, size=128)
    assert snapshot(model, data, ledger, 2, 0)["thumbnails"].shape == (0, 3, 96, 96)
    ledger.record(torch.tensor([1]), torch.tensor([0]), epoch=1, rule="test")
    found = snapshot(model, data, ledger, 2, 0)
    assert found["pictured"].tolist() == [1]
    assert found["thumbnails"].shape == (1, 3, 96, 96)
    mean = data.images[1].float().mean()
    torch.testing.assert_close(found["thumbnails"].float().mean(), mean, atol=1, rtol=0)
