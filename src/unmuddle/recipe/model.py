"""Classifier: a backbone, ARM or average pooling, a linear layer and a projection head."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unmuddle.arm import ARM, PublishedARM
from unmuddle.arm.attach import warn_if_narrow
from unmuddle.recipe.backbones import Backbone
from unmuddle.recipe.images import Standardize

EMBEDDING_DIM = 128


class Prediction(NamedTuple):
    """Outputs of the network for N images.

    Attributes:
        logits: `(N, K)`.
        features: `(N, F)`, input of the linear layer.
        embeddings: `(N, 128)` unit vectors for SupCon; `None` without SupCon.
    """

    logits: Tensor
    features: Tensor
    embeddings: Tensor | None


class Classifier(nn.Module):
    """Network that maps standardized images `(N, 3, S, S)` to a `Prediction`.

    Args:
        backbone: backbone that maps images to the last feature map.
        num_classes: number of classes K.
        parts: parts of the recipe; `uerm` has no effect here.

    Attributes:
        standardize: module that converts stored images to the input of `forward`.
    """

    def __init__(self, backbone: Backbone, num_classes: int, parts: Collection[str]) -> None:
        super().__init__()
        channels = backbone.channels
        self.standardize = Standardize(*(backbone.pixels or ()))
        self.backbone = backbone.network
        self.is_frozen = False
        self.average = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        make = ARM if "arm" in parts else PublishedARM if "published_arm" in parts else None
        self.arm = make(channels, backbone.map_size) if make else None
        if self.arm is not None:
            warn_if_narrow(self.arm, num_classes)
        self.feature_dim = self.arm.out_features if self.arm else channels
        self.classifier = nn.Linear(self.feature_dim, num_classes)
        self.projection = (
            nn.Sequential(
                nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, EMBEDDING_DIM)
            )
            if "supcon" in parts
            else None
        )

    def train(self, mode: bool = True) -> "Classifier":
        """Set training or eval mode. A frozen backbone stays in eval mode."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Prediction:
        """Classify a batch.

        The input of the projection head is the average-pooled feature map, even with ARM.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            feature_map = self.backbone(images)
        features = self.arm(feature_map) if self.arm else self.average(feature_map)
        embeddings = (
            normalize(self.projection(self.average(feature_map))) if self.projection else None
        )
        return Prediction(self.classifier(features), features, embeddings)
