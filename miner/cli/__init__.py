"""The command line of the miner."""
