"""Entry point of `python -m experiments`; says what to install where libraries are missing."""

from __future__ import annotations

import sys

EXTRA = ("matplotlib", "numpy", "optuna", "pytorch_optimizer", "rich", "scipy", "sklearn")


def main() -> int:
    try:
        from experiments.cli import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRA:
            raise
        print(f'{error.name} is missing: pip install -e ".[experiments]"', file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
