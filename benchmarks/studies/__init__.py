"""What the parts do for accuracy and for labels, by training."""
