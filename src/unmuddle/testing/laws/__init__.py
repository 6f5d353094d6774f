"""Laws that losses obey, by kind of loss: each says what must hold, and why.

`check_loss` tries them on many batches. Numbers are compared in fp64 with the loss's own rounding
as the measure (`measured`): how far its fp32 result is from its fp64 result, scaled to fp64.
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
    """`laws.rotation` is `LAWS["rotation"]`."""
    if name in LAWS:
        return LAWS[name]
    raise AttributeError(f"unmuddle.testing.laws has no law {name!r}")
