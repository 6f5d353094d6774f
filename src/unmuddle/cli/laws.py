"""`unmuddle laws`.

Examples:
  unmuddle laws my_losses:my_loss --kinds supervised
"""

import json as json_module
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any, Literal

from unmuddle.cli.parser import OutputFile
from unmuddle.recipe.atomic import write_text
from unmuddle.recipe.errors import UsageError
from unmuddle.testing import check_loss


def run(
    loss: str,
    *,
    kinds: Sequence[str] = ("pairwise", "supervised"),
    profile: Literal["fast", "ci", "thorough"] | None = None,
    processes: int | None = None,
    json: OutputFile | None = None,
) -> int:
    """Check the laws of losses on a loss, and print which of them hold.

    Args:
        loss: MODULE:CALLABLE; a class is instantiated without arguments
        kinds: kinds of the loss
        profile: number of examples
        processes: number of processes to compare with 1, if the loss gathers
        json: file to write the report to
    """
    try:
        found = resolve_name(loss)
        fn = found() if isinstance(found, type) else found
        chosen: Any = kinds  # check_loss names those that it does not know
        report = check_loss(fn, kinds=chosen, profile=profile, processes=processes)
    except (Exception, SystemExit) as error:  # the user's module can fail in any way
        raise UsageError(f"{loss}: {type(error).__name__}: {error}") from error
    if json is not None:
        write_text(json, json_module.dumps(report.to_dict(), indent=2) + "\n")
    print(report)
    return int(bool(report.of("failed")))
