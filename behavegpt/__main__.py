"""`python -m behavegpt` is the `behavegpt` command."""

import sys

from behavegpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
