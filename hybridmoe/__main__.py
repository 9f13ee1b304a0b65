"""The `hybridmoe` command, also as `python -m hybridmoe`.

Ctrl-C ends it without a traceback from its first line on, also in its imports, which are most of
its start: nothing is there then that would be lost. Only Python's own start is out of reach.
"""

import os
import signal
import sys

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> int:
    """Run the command line of this process; return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    from hybridmoe.cli.app import main as run  # puts the default handler back

    return run()


if __name__ == "__main__":
    sys.exit(main())
