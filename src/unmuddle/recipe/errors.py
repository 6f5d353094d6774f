"""Errors that the command line reports without a traceback."""

from collections.abc import Generator
from contextlib import contextmanager


class UsageError(ValueError):
    """Error raised when a request of the user cannot be carried out.

    The message names the request and the reason.
    """


@contextmanager
def refusing(what: object) -> Generator[None]:
    """Turn every error into a UsageError whose message begins with `what`.

    Wrap only code that reads or builds what a user gave, which can fail in any way.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(f"{what}: {error}") from error
    except Exception as error:
        raise UsageError(f"{what}: {type(error).__name__}: {error}") from error
