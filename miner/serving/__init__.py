"""The service: plans runs over sealed rounds and streams their batches over gRPC."""
