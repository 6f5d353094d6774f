"""Entry point of `python -m unmuddle`."""

import sys

from unmuddle.cli import main

sys.exit(main())
