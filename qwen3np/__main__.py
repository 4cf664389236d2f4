"""Run the command line: python -m qwen3np."""

import sys

from .cli import main

sys.exit(main())
