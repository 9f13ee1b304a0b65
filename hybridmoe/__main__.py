"""`python -m hybridmoe`: the same as the `hybridmoe` command."""

import sys

from hybridmoe.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
