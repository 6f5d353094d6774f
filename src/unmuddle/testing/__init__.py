"""Checks for anybody's losses and modules."""

from unmuddle.testing.invariance import BatchInvariance, batch_invariance

__all__ = ["BatchInvariance", "batch_invariance"]
