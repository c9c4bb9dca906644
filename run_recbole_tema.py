"""Train and evaluate a model: ``python run_recbole_tema.py --model=TEMA`` (``--help`` for more)."""

import sys

from recbole_tema.cli import main

if __name__ == "__main__":
    sys.exit(main())
