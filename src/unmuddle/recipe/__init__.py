"""Reference training recipe: data sets, backbones and the training loop."""
