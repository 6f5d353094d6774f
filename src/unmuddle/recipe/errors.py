"""The one error that the command line shows without a traceback."""


class UsageError(ValueError):
    """What the user asked for cannot be done; the message says what and why."""
