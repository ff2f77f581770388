"""`python -m vlmprune.cli`."""

import sys

from vlmprune.cli import main

sys.exit(main())
