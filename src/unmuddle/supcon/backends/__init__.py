"""Implementations of one contract: `anchor_losses(z, positives, included, inv_temperature)`.

`z` is `(N, D)` in fp32 or fp64, `included` `(N,)` is 0 for rows that take no part,
`inv_temperature` a scalar tensor; the result `(N,)` is 0 where an anchor has no positive.
"""
