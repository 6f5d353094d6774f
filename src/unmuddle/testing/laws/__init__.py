"""Laws by kind of loss; each law states what must hold, and why.

`check_loss` checks them on many batches. Results are compared in fp64. The tolerance follows from
the rounding error of the loss itself: the error of its fp32 result, scaled to fp64. See `measured`.
"""

from unmuddle.testing.law import Law
from unmuddle.testing.laws import (
    any_loss,
    classes,
    contrastive,
    geometry,
    masks,
    metric,
    options,
    processes,
)

LAWS: dict[str, Law] = {
    name: found
    for module in (any_loss, geometry, metric, classes, masks, contrastive, options, processes)
    for name, found in vars(module).items()
    if isinstance(found, Law)
}


def __getattr__(name: str) -> Law:
    """Return a law by name: `laws.rotation` is `LAWS["rotation"]`."""
    if name in LAWS:
        return LAWS[name]
    raise AttributeError(f"unmuddle.testing.laws has no law {name!r}")
