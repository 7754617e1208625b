"""Run the command line."""

import sys

from classbalance_losses.stats.command import main

sys.exit(main())
