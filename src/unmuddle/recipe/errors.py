"""Error that the command line reports without a traceback."""


class UsageError(ValueError):
    """Error raised when a request of the user cannot be carried out.

    The message names the request and the reason.
    """
