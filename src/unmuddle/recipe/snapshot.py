"""Snapshot of the training samples for a report: features, and images of relabeled samples."""

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from unmuddle.recipe.data import LabeledImages
from unmuddle.recipe.loaders import RngStream, seed_for
from unmuddle.recipe.model import Classifier
from unmuddle.uerm import LabelLedger

MAPPED = 600  # samples on the map
PICTURED = 48  # relabeled samples
THUMBNAIL = 96  # largest side length in pixels


@torch.no_grad()
def snapshot(
    model: Classifier, data: LabeledImages, ledger: LabelLedger, batch_size: int, seed: int
) -> dict[str, Tensor]:
    """Draw random samples, regardless of whether they were relabeled correctly.

    Returns:
        `mapped`, `(m,)` ids, and `features`, their features `(m, F)` by the model in eval mode;
        `pictured`, `(p,)` ids of relabeled samples, and `thumbnails`, their images `(p, 3, s, s)`
        uint8.
    """
    random = torch.Generator().manual_seed(seed_for(RngStream.SNAPSHOT, seed))

    def draw(ids: Tensor, most: int) -> Tensor:
        chosen = torch.randperm(len(ids), generator=random)[:most]
        return ids[chosen].sort().values

    model.eval()
    device = next(model.parameters()).device
    mapped = draw(torch.arange(len(data)), MAPPED)
    features = [
        model(
            model.standardize(torch.stack([data[i][0] for i in ids.tolist()]).to(device))
        ).features
        for ids in mapped.split(batch_size)
    ]
    changed = (ledger.current_labels != ledger.original_labels).nonzero()[:, 0].cpu()
    pictured = draw(changed, PICTURED)
    images = [data[i][0] for i in pictured.tolist()]
    side = min(THUMBNAIL, data[0][0].shape[-1])
    thumbnails = torch.zeros(len(images), 3, side, side, dtype=torch.uint8)
    for thumbnail, image in zip(thumbnails, images, strict=True):
        thumbnail.copy_(resize(image, [side, side], antialias=True))
    return {
        "mapped": mapped,
        "features": torch.cat(features).float().cpu(),
        "pictured": pictured,
        "thumbnails": thumbnails,
    }
