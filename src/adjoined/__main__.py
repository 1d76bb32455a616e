"""`python -m adjoined`: the same as the `adjoined` command."""

import sys

from adjoined.cli import main

if __name__ == "__main__":
    sys.exit(main())
