"""``python -m sparsebert``: the same command line as the installed ``sparsebert``."""

import sys

from sparsebert.cli import main

sys.exit(main())
