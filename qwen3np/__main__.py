"""python -m qwen3np"""

import sys

from .cli.main import main

sys.exit(main())
