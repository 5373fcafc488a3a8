#!/usr/bin/env python
"""Asks a miner's standard gRPC health service whether it serves; ends with 0 if so, else with 1.

No token is needed. It speaks TLS to a CA of one's own, which not every kubelet's gRPC probe does.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

RETRY_S = 2.0


def problem_of(address: str, ca: Path | None, timeout_s: float) -> str:
    """Why the service does not serve; empty if it does."""
    if ca is None:
        channel = grpc.insecure_channel(address)
    else:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes()))
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError as exc:
            return f"{exc.code().name}: {exc.details()}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return "" if status == "SERVING" else status


def main() -> int:
    """Ask, and go on asking for as long as was said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="host:port of the service")
    parser.add_argument("--ca", type=Path, help="CA of its certificate, PEM; none: no TLS")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="of one question")
    parser.add_argument("--wait-s", type=float, default=0.0, help="go on asking for so long")
    options = parser.parse_args()
    deadline = time.monotonic() + options.wait_s
    while problem := problem_of(options.address, options.ca, options.timeout_s):
        if time.monotonic() + RETRY_S > deadline:
            sys.stderr.write(f"{options.address} does not serve: {problem}\n")
            return 1
        time.sleep(RETRY_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
