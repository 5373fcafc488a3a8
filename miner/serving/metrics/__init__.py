"""What the service tells Prometheus: the only part of the miner that knows its client library."""
