"""``python -m miner`` is ``coalface-miner``."""

from __future__ import annotations

import sys

from miner.errors import ConfigError

__all__ = ["main"]


def main() -> None:
    """Load the command line and run it, as :func:`miner.cli.main.main` says.

    Loading reads the failpoints of the environment; if they are malformed, that is told here.
    """
    try:
        from miner.cli.main import main as run
    except ConfigError as exc:
        sys.stderr.write(f"ConfigError: {exc}\n")
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
