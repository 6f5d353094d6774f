"""What somebody does first with an installed unmuddle; `make package` runs it in an empty environment."""

import sys
from pathlib import Path

import torch

import unmuddle
from unmuddle import ARM, UERM, FeatureQueue, LabelLedger, SupConLoss, supcon_loss
from unmuddle.supcon import choose_impl


def main() -> None:
    assert "site-packages" in unmuddle.__file__ or "--anywhere" in sys.argv, (
        "not the installed package"
    )
    assert Path(unmuddle.__file__).with_name("py.typed").exists()

    labels = torch.arange(64) % 4
    features = torch.randn(64, 2, 16, requires_grad=True)
    SupConLoss()(features, labels).backward()
    assert torch.isfinite(features.grad).all()
    queue = FeatureQueue(32, 16)
    queue.enqueue(features[:, 0].detach(), labels)
    keys, key_labels = queue.keys()
    assert supcon_loss(features, labels, keys=keys, key_labels=key_labels) > 0
    assert choose_impl("auto", torch.device("cpu")) == "tiled"
    assert ARM(64, (3, 3))(torch.randn(2, 64, 3, 3)).shape == (2, 128)
    uerm = UERM(labels, num_classes=4, warmup_epochs=0)
    uerm(torch.zeros(64, 1), 9 * torch.eye(4)[labels.roll(1)], torch.arange(64))
    uerm.end_epoch()
    assert isinstance(uerm.ledger, LabelLedger)
    assert not {"torchvision", "timm", "hypothesis", "matplotlib"} & set(sys.modules)
    print(
        "unmuddle", unmuddle.__version__, "with torch", torch.__version__, "from", unmuddle.__file__
    )


if __name__ == "__main__":
    main()
