"""The one error that the command line shows without a traceback."""


class UsageError(ValueError):
    """Error about a request that cannot be met; the message says what and why."""
