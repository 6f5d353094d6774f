"""`unmuddle doctor`.

Examples:
  unmuddle doctor > doctor.txt
"""

from unmuddle.doctor import checks, environment, speeds


def run() -> int:
    """Print the environment, and check that the parts compute the same on all devices.

    If they do, time them.
    """
    for name, value in environment().items():
        print(f"{name}: {value}")
    print("\nagreement with fp64 on the CPU:")
    failed = 0
    for name, error in checks():
        print(f"  {name}: {error or 'agrees'}")
        failed += bool(error)
    if failed:
        print(f"{failed} do not agree; nothing was timed")
        return 1
    print("\nforward and backward:")
    for name, milliseconds in speeds():
        print(f"  {name}: {milliseconds:.2f} ms")
    return 0
