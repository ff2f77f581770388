"""`python -m vlmprune`: the command line."""

import sys

from vlmprune.cli import main

sys.exit(main())
