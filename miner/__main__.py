"""``python -m miner`` is ``coalface-miner``."""

from miner.cli.main import main

if __name__ == "__main__":
    main()
