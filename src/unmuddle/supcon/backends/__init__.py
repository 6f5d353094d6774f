"""Implementations of the loss.

`reference` is Eq. 2 and 3 for autograd, `one_tile` takes small batches whole. `tiled` and `triton`
have one contract: `log_sum_exp` over a row's pairs, and `pull`, the gradient of all of them in z.
"""
