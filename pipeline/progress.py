"""How often a progress bar is drawn: it moves on a terminal, and leaves a line now and then in a log file."""

import sys


def interval() -> float:
    """Seconds between two states of a bar on standard error."""
    return 0.5 if sys.stderr.isatty() else 15.0
