"""`unmuddle doctor`."""

from unmuddle.cli.parser import Parser, make_parser
from unmuddle.doctor import checks, environment, speeds


def parser() -> Parser:
    """Return the parser of the command."""
    return make_parser(
        run,
        "unmuddle doctor",
        "  unmuddle doctor > doctor.txt",
    )


def run() -> int:
    """Print the environment, and check that the parts compute the same on all devices.

    If they do, time them.
    """
    for name, value in environment().items():
        print(f"{name}: {value}")
    print("\nagreement with fp64 on the CPU:")
    failed = 0
    for check in checks():
        print(f"  {check.name}: {check.error or 'agrees'}")
        failed += bool(check.error)
    if failed:
        print(f"{failed} do not agree; nothing was timed")
        return 1
    print("\nforward and backward:")
    for name, milliseconds in speeds():
        print(f"  {name}: {milliseconds:.2f} ms")
    return 0
