"""First steps with an installed package; `make package` runs them in an empty environment.

python tests/smoke.py [--anywhere] [PAGE.md]   with a page, its examples in place of the steps
"""

import re
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
    pages = [Path(name) for name in sys.argv[1:] if name.endswith(".md")]
    for page in pages:
        for example in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(example, {"__name__": "__main__"})
    if not pages:
        take_first_steps()
    print(
        "unmuddle", unmuddle.__version__, "with torch", torch.__version__, "from", unmuddle.__file__
    )


def take_first_steps() -> None:
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


if __name__ == "__main__":
    main()
