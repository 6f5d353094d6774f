"""Implementations of the loss, with the interface `engine.Backend`.

`reference` computes Eq. 2 and 3 as written. `dense` holds all pairs of a small batch at once.
`tiled` and `triton` process the pairs in tiles.
"""
