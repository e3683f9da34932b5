"""python -m behavegpt.cli"""

import sys

from behavegpt.cli import main

sys.exit(main())
