"""One connection to the miner: every request of the service as a method, with deadline and retries.

It knows no buffer and no training loop. Shape legend: Q = queries, D = dimensions, R = rows,
I = identities. Not shared between threads; gRPC does not survive a fork,
so a child process makes its own.

Calls fail fast and are repeated here, not by gRPC: a stream is never retried by gRPC once it has
begun, its own retries give up after five attempts, and a call that waits for readiness hides why
the connection fails. Every repetition takes a new connection, so that a hung process does not hold
the client that could reach its successor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import grpc
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from trainer.errors import FeedError, RunRefusedError, WeightsRefusedError
from trainer.feed.access import Access, TlsFiles
from trainer.feed.negatives import FreshNegatives, decode_negatives
from trainer.feed.patience import Patience
from trainer.feed.status_codes import error_of, may_pass, retry_after_s

__all__ = ["MinerClient", "RunParameters", "StreamCall"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

UPLOAD_PART = 2**20
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel would share the old connection
    ("grpc.enable_retries", 0),
]

ExhaustedPolicy = Literal["repeat", "wait"]
StalePolicy = Literal["serve", "wait"]


class StreamCall(Protocol):
    """A stream under way: iterate it, or cancel it from another thread."""

    def __iter__(self) -> Iterator[mining_pb2.StreamTripletsResponse]: ...

    def cancel(self) -> bool:
        """End it; the iteration then raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParameters:
    """What a run is opened with; opening it again needs the same values.

    Attributes:
        run_id: 1 to 128 of ``[A-Za-z0-9._-]``, not starting with a dot.
        batch_rows: Upper bound on the rows of a global batch, at least 3.
        seed: Keys the order of the groups.
        exhausted: When every group of the newest round is used up: go through it again in a new
            order, or wait for a newer round.
        stale: When a step's staleness would pass the bound: serve it marked, or wait.
        max_staleness_steps: That bound, in optimizer steps; 0 for none.
        dataset_fingerprint: The dataset the run must be served from; empty: any.
    """

    run_id: str
    batch_rows: int
    seed: int = 0
    exhausted: ExhaustedPolicy = "repeat"
    stale: StalePolicy = "serve"
    max_staleness_steps: int = 0
    dataset_fingerprint: str = ""

    def request(self) -> mining_pb2.OpenRunRequest:
        """These values on the wire."""
        return mining_pb2.OpenRunRequest(
            run_id=self.run_id,
            batch_rows=self.batch_rows,
            seed=self.seed,
            exhausted_policy=f"EXHAUSTED_POLICY_{self.exhausted.upper()}",
            stale_policy=f"STALE_POLICY_{self.stale.upper()}",
            max_staleness_steps=self.max_staleness_steps,
            dataset_fingerprint=self.dataset_fingerprint,
        )


class MinerClient:
    """A connection to one miner.

    Every method repeats an attempt that found no miner, or one that is too busy, with jittered
    pauses, until ``patience_s`` have passed; then it raises :class:`MinerUnreachableError` or
    :class:`LimitError`. A refusal is raised at once, as the class that :mod:`trainer.errors` lists
    for it.

    Args:
        address: ``host:port`` of ``coalface-miner serve``.
        patience_s: Seconds to go on trying; 0 makes a single attempt.
        deadline_s: Seconds after which one attempt at a small request is given up.
        tls: Certificates, read whenever it connects; None: unencrypted.
        token_file: File of the token, read for each request; None: ``COALFACE_TOKEN``, if set.

    Raises:
        ConfigError: A file cannot be read, or a token would leave this machine unencrypted.
    """

    def __init__(
        self,
        address: str,
        *,
        patience_s: float = 300.0,
        deadline_s: float = 20.0,
        tls: TlsFiles | None = None,
        token_file: Path | None = None,
    ) -> None:
        self.address = address
        self._access = Access(address, tls, token_file)
        self._patience_s = patience_s
        self._deadline_s = deadline_s
        self._connect()

    def open_run(self, parameters: RunParameters) -> mining_pb2.OpenRunResponse:
        """Open the run, or find it again.

        Raises:
            RunRefusedError: If it exists with other values, or the dataset is another one.
            BadRequestError: If a value is out of range; the text names the field.
        """
        opened: mining_pb2.OpenRunResponse = self._ask("OpenRun", parameters.request())
        return opened

    def stream(self, request: mining_pb2.StreamTripletsRequest) -> StreamCall:
        """Start one stream; a single attempt, which raises ``grpc.RpcError`` while it is read.

        It has no deadline: who reads it cancels it when it has been silent for too long.
        """
        call: StreamCall = self._stub.StreamTriplets(request, metadata=self._access.metadata())
        return call

    def commit(self, run_id: str, step: int) -> int:
        """Tell that steps ``[0, step)`` are in a durable checkpoint; the highest told so far."""
        request = mining_pb2.CommitStepRequest(run_id=run_id, step=step)
        return int(self._ask("CommitStep", request).committed_step)

    def announce(self, *, step: int, uri: str, sha256: str) -> bool:
        """Offer new weights; returns once the miner has checked them.

        Returns:
            Whether newer weights had been accepted before, so that these will not be mined.

        Raises:
            WeightsRefusedError: With the miner's reason; its last good round stays in service.
        """
        request = mining_pb2.AnnounceWeightsRequest(step=step, uri=uri, sha256=sha256)
        # The check embeds a canary batch, so it may take the whole patience.
        response = self._ask(
            "AnnounceWeights",
            request,
            refused=WeightsRefusedError,
            deadline_s=self._patience_s,
        )
        return bool(response.superseded)

    def request_refresh(self) -> int:
        """Ask for a round from the newest accepted weights; returns their step.

        Raises:
            WeightsRefusedError: If no weights have been accepted yet.
        """
        response = self._ask(
            "RequestRefresh",
            mining_pb2.RequestRefreshRequest(),
            refused=WeightsRefusedError,
        )
        return int(response.model_step)

    def upload(self, *, step: int, path: Path, sha256: str) -> bool:
        """Send new weights where no storage is shared; else as :meth:`announce`.

        Args:
            step: Optimizer step of the weights.
            path: A safetensors file.
            sha256: Its digest.

        Raises:
            WeightsRefusedError: With the miner's reason; its last good round stays in service.
            LimitError: The file is larger than the miner takes.
            OSError: The file cannot be read.
        """
        total_bytes = path.stat().st_size
        header = mining_pb2.UploadHeader(step=step, sha256=sha256, total_bytes=total_bytes)
        failures: list[OSError] = []
        with ExitStack() as attempt:

            def begin() -> Iterator[mining_pb2.UploadWeightsRequest]:
                attempt.close()
                return _upload_parts(header, attempt.enter_context(path.open("rb")), failures)

            try:
                response = self._ask(
                    "UploadWeights",
                    begin,
                    refused=WeightsRefusedError,
                    deadline_s=self._patience_s,
                )
            except FeedError as exc:
                if failures:
                    raise failures[-1] from exc
                raise
        return bool(response.superseded)

    def query_rows(
        self, row_ids_Q: I64, num_negatives: int, *, max_similarity: float | None = None
    ) -> FreshNegatives:
        """Of some rows the nearest of other identities in the newest mined round's snapshot.

        Args:
            row_ids_Q: [Q] int64.
            num_negatives: K, of each; Q K at most 262,144.
            max_similarity: Rows that are more similar are left out as suspects.

        Raises:
            RunRefusedError: No round has been mined yet.
            BadRequestError: If a value is out of range; the text names the field.
            LimitError: So many are being searched all the time, or the request is too large.
        """
        rows = mining_pb2.RowQueries(row_ids=row_ids_Q.astype("<i8").tobytes())
        request = mining_pb2.QueryNegativesRequest(
            rows=rows, num_negatives=num_negatives, max_similarity=max_similarity
        )
        return decode_negatives(self._ask("QueryNegatives", request))

    def query_embeddings(
        self,
        embeddings_QD: F32,
        identity_ids_Q: I32,
        num_negatives: int,
        *,
        max_similarity: float | None = None,
    ) -> FreshNegatives:
        """As :meth:`query_rows`, for embeddings of the model as it is now.

        Args:
            embeddings_QD: [Q, D] float32 of any length but 0.
            identity_ids_Q: [Q] int32 whose they are: rows of this identity are left out; -1: none.
            num_negatives: K, of each.
            max_similarity: As there.
        """
        queries = mining_pb2.EmbeddingQueries(
            embeddings=embeddings_QD.astype("<f4").tobytes(),
            identity_ids=identity_ids_Q.astype("<i4").tobytes(),
            dim=embeddings_QD.shape[1],
        )
        request = mining_pb2.QueryNegativesRequest(
            embeddings=queries, num_negatives=num_negatives, max_similarity=max_similarity
        )
        return decode_negatives(self._ask("QueryNegatives", request))

    def samples(self, row_ids_R: I64) -> pa.Table:
        """The samples of some rows in this order: column row_id and the payload columns.

        Raises:
            BadRequestError: If a row does not exist, or they are more than 65,536.
        """
        request = mining_pb2.GetSamplesRequest(row_ids=row_ids_R.astype("<i8").tobytes())
        parts = self._ask("GetSamples", request, read=list)
        return pa.ipc.open_stream(b"".join(part.content for part in parts)).read_all()

    def report_difficulty(self, run_id: str, step: int, identity_ids_I: I32, losses_I: F32) -> int:
        """Tell mean losses of identities; the next round's quotas follow them.

        Args:
            run_id: An open run.
            step: Optimizer step that they are of.
            identity_ids_I: [I] int32, distinct.
            losses_I: [I] float32, finite, at least 0.

        Returns:
            Of how many identities the miner knows a difficulty by now.
        """
        request = mining_pb2.ReportDifficultyRequest(
            run_id=run_id,
            step=step,
            identity_ids=identity_ids_I.astype("<i4").tobytes(),
            losses=losses_I.astype("<f4").tobytes(),
        )
        return int(self._ask("ReportDifficulty", request).num_identities)

    def status(self) -> mining_pb2.GetStatusResponse:
        """What is served, what is being mined, and which runs are open."""
        status: mining_pb2.GetStatusResponse = self._ask("GetStatus", mining_pb2.GetStatusRequest())
        return status

    def watch(self, min_interval_s: float = 0.5) -> Iterator[mining_pb2.GetStatusResponse]:
        """The status now, and whenever it has changed; ends when the miner drains.

        A single attempt.

        Raises:
            FeedError: The miner is gone, or refuses.
        """
        request = mining_pb2.WatchStatusRequest(min_interval_s=min_interval_s)
        try:
            yield from self._stub.WatchStatus(request, metadata=self._access.metadata())
        except grpc.RpcError as exc:
            raise error_of(exc) from exc

    def rounds(self) -> Iterator[mining_pb2.RoundSummary]:
        """The sealed rounds that are kept, newest first."""
        before = 0
        while True:
            page = self._ask("ListRounds", mining_pb2.ListRoundsRequest(before_round_id=before))
            yield from page.rounds
            before = page.next_before_round_id
            if not before:
                return

    def round(self, round_id: int = 0) -> dict[str, Any]:
        """All that is written about a round, as its manifest says; 0 is the newest.

        Raises:
            RoundLostError: It has expired, or is not sealed.
        """
        answer = self._ask("GetRound", mining_pb2.GetRoundRequest(round_id=round_id))
        manifest: dict[str, Any] = json.loads(answer.manifest_json)
        return manifest

    def drain(self) -> int:
        """Have the miner stopped as by SIGTERM; how many streams are being ended."""
        return int(self._ask("Drain", mining_pb2.DrainRequest()).num_streams)

    def reconnect(self) -> None:
        """Drop the connection and take a new one."""
        self.close()
        self._connect()

    def close(self) -> None:
        """Give up the connection; safe to repeat."""
        self._channel.close()

    def __enter__(self) -> MinerClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _connect(self) -> None:
        self._channel = self._access.channel(CHANNEL_OPTIONS)
        self._stub: Any = _make_stub(self._channel)

    def _ask(
        self,
        method: str,
        request: Any,
        *,
        refused: type[FeedError] = RunRefusedError,
        deadline_s: float | None = None,
        read: Callable[[Any], Any] = lambda answer: answer,
    ) -> Any:
        """One request, repeated while no miner answers.

        Args:
            method: Of the stub.
            request: The message; for a stream of them a function that begins it anew.
            refused: What FAILED_PRECONDITION means here.
            deadline_s: Of one attempt; None: the client's.
            read: Takes what is needed off the answer, such as all of a stream.
        """
        patience = Patience(self.address, self._patience_s)
        longest_s = self._deadline_s if deadline_s is None else deadline_s
        while True:
            try:
                call = getattr(self._stub, method)  # of the newest connection
                sent = request() if callable(request) else request
                left_s = min(longest_s, patience.left_s)
                return read(call(sent, timeout=left_s, metadata=self._access.metadata()))
            except grpc.RpcError as exc:
                error, hint_s = error_of(exc, refused), retry_after_s(exc)
                if not may_pass(error, hint_s):
                    raise error from exc
                patience.pause(error, hint_s)
                self.reconnect()


def _upload_parts(
    header: mining_pb2.UploadHeader, file: BinaryIO, failures: list[OSError]
) -> Iterator[mining_pb2.UploadWeightsRequest]:
    """The messages, made on a thread of gRPC's; a file that cannot be read on ends them early.

    Raised there, the error would look like a broken connection, which is worth another attempt. The
    miner refuses what is not whole.
    """
    yield mining_pb2.UploadWeightsRequest(header=header)
    try:
        while content := file.read(UPLOAD_PART):
            yield mining_pb2.UploadWeightsRequest(content=content)
    except OSError as exc:
        failures.append(exc)
    except ValueError:  # the file is closed: nobody waits for this attempt any more
        return


_make_stub: Callable[[grpc.Channel], Any] = mining_pb2_grpc.MiningServiceStub
