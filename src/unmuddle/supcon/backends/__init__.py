"""Implementations of the loss; `engine.Backend` is their interface.

`reference` is Eq. 2 and 3 as written, `dense` holds all pairs of a small batch at once, `tiled` and
`triton` visit them in tiles.
"""
