"""Train and evaluate a model: ``python run_recbole_tema.py --model=TEMA`` (``--help`` for more)."""

import sys

if __name__ == "__main__":
    try:
        from recbole_tema.cli import main
    except ModuleNotFoundError as error:
        # A Python that nothing was installed for, as before `make install` or outside of .venv.
        sys.exit(
            f"error: {sys.executable} has no package '{error.name}'; run 'make install' and then "
            "'.venv/bin/python run_recbole_tema.py ...', or 'pip install .'"
        )
    sys.exit(main())
