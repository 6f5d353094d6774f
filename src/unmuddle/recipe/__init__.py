"""The reference training recipe: data sets, backbones, one flat training loop."""
