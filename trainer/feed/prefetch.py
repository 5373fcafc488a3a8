"""The thread that keeps the next few batches at hand, over any number of miner restarts.

It knows steps and requests, and nothing of the training loop. One thread fills, one consumes::

    RUNNING --(last step read)--> DONE
       +--(error that no retry mends)--> FAILED, raised to the consumer after what is buffered
       +--(close)--> CLOSED
"""

import logging
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import grpc

from protos.coalface.v1 import mining_pb2
from trainer.errors import FeedError, MinerUnreachableError, ProtocolError
from trainer.feed.access import TlsFiles
from trainer.feed.batch import TripletBatch, decode_batch
from trainer.feed.client import MinerClient, StreamCall
from trainer.feed.parts import PartedBatch
from trainer.feed.patience import Patience
from trainer.feed.silence import SilenceWatch
from trainer.feed.status_codes import error_of, may_pass, retry_after_s

__all__ = ["Prefetcher", "Subscription"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What to read, and how.

    Attributes:
        address: ``host:port`` of the miner.
        run_id: An open run.
        rank: This reader's rank, in ``[0, world_size)``.
        world_size: Ranks that share each global batch.
        first_step: The first step to read.
        stop_step: The step after the last one; None for no end.
        with_payload: Whether the samples come along.
        prefetch_steps: Batches that are buffered or on their way, at most.
        idle_s: A stream that brings neither heartbeat, batch nor part of one for so long is given
            up.
        patience_s: Without any sign of life for so long, the miner counts as gone.
        tls: Certificates, as for :class:`MinerClient`.
        token_file: File of the token, likewise.
    """

    address: str
    run_id: str
    rank: int
    world_size: int
    first_step: int
    stop_step: int | None
    with_payload: bool
    prefetch_steps: int
    idle_s: float
    patience_s: float
    tls: TlsFiles | None = None
    token_file: Path | None = None


class Prefetcher:
    """Reads the steps of one subscription in order, each exactly once, ahead of the consumer.

    The miner plans what is asked for, so this asks for windows: never more steps than there is
    room for. That bounds the memory on both sides, and how far a plan runs ahead of training.
    A window that ends early, for whatever reason, is followed by one that begins at the next
    missing step.

    Attributes:
        num_reconnects: How often the connection was given up for a new one.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._wanted = subscription
        self._next_step = subscription.first_step
        self._buffer: deque[TripletBatch] = deque()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        self._done = False
        self.num_reconnects = 0
        self._call: StreamCall | None = None
        self._parts = PartedBatch()
        self._silence = SilenceWatch()
        self._thread = threading.Thread(target=self._run, name="coalface-feed", daemon=True)
        self._thread.start()

    def take(self) -> TripletBatch | None:
        """The next batch, waiting for it if need be; None after the last one.

        Raises:
            FeedError: What ended the reading, after everything read before has been taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._buffer or self._done)
            if self._buffer:
                batch = self._buffer.popleft()
                self._changed.notify_all()
                return batch
            if self._failure is not None:
                raise self._failure
            return None

    @property
    def num_buffered(self) -> int:
        """Batches at hand."""
        return len(self._buffer)

    def close(self) -> None:
        """Stop reading and wait for the thread to end; safe to repeat."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            if self._call is not None:
                self._call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            wanted = self._wanted
            with (
                MinerClient(wanted.address, tls=wanted.tls, token_file=wanted.token_file) as client,
                self._silence,
            ):
                self._read_all(client)
        except BaseException as exc:  # handed to the consumer, whatever it is
            self._failure = exc
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _read_all(self, client: MinerClient) -> None:
        patience = Patience(self._wanted.address, self._wanted.patience_s, self._closed.wait)
        while num_steps := self._wait_for_room():
            patience.renew()  # the time spent on a full buffer says nothing about the miner
            stop = self._next_step + num_steps
            while self._next_step < stop and not self._closed.is_set():
                self._read_window(client, patience, stop - self._next_step)

    def _wait_for_room(self) -> int:
        """Steps to ask for once at least half of the buffer is free; 0 at the end."""
        wanted = self._wanted
        stop = wanted.stop_step
        left = wanted.prefetch_steps if stop is None else stop - self._next_step
        enough = min(left, (wanted.prefetch_steps + 1) // 2)
        with self._changed:
            self._changed.wait_for(lambda: self._closed.is_set() or self._room >= enough)
            return 0 if self._closed.is_set() else min(left, self._room)

    @property
    def _room(self) -> int:
        return self._wanted.prefetch_steps - len(self._buffer)

    def _read_window(self, client: MinerClient, patience: Patience, num_steps: int) -> None:
        """One stream of at most ``num_steps``; leaves with a pause if the miner gave none."""
        alive = False
        self._parts = PartedBatch()
        error: FeedError = MinerUnreachableError("the miner ended the stream: it is draining")
        hint_s = 0.0
        try:
            call = self._start(client, num_steps)
            self._silence.watch(call, min(self._wanted.idle_s, patience.left_s))
            for response in call:
                alive = True
                patience.renew()
                self._silence.watch(call, min(self._wanted.idle_s, patience.left_s))
                self._accept(response)
            if alive:
                return
        except grpc.RpcError as exc:
            if self._closed.is_set():
                return
            error, hint_s = error_of(exc), retry_after_s(exc)
            if not may_pass(error, hint_s):
                raise error from exc
            if not self._silence.rest():
                error = MinerUnreachableError(f"nothing came within idle_s={self._wanted.idle_s:g}")
        finally:
            self._silence.rest()
            self._call = None
        run_id, step = self._wanted.run_id, self._next_step
        extra = {"run": run_id, "step": step}
        logger.info("run %s: step %d again: %s", run_id, step, error, extra=extra)
        patience.pause(error, hint_s)
        client.reconnect()
        self.num_reconnects += 1

    def _start(self, client: MinerClient, num_steps: int) -> StreamCall:
        """Ask for the next window."""
        request = mining_pb2.StreamTripletsRequest(
            run_id=self._wanted.run_id,
            first_step=self._next_step,
            num_steps=num_steps,
            rank=self._wanted.rank,
            world_size=self._wanted.world_size,
            with_payload=self._wanted.with_payload,
        )
        with self._changed:  # so that close() finds the call, or this finds it closed
            call = client.stream(request)
            self._call = call
            if self._closed.is_set():
                call.cancel()
        return call

    def _accept(self, response: mining_pb2.StreamTripletsResponse) -> None:
        if response.HasField("heartbeat"):
            beat = response.heartbeat
            run_id, step = self._wanted.run_id, beat.next_step
            extra = {"run": run_id, "step": step}
            logger.info("run %s waits for step %d: %s", run_id, step, beat.reason, extra=extra)
        whole = [*response.batches]
        if response.HasField("part"):
            whole += self._parts.add(response.part)
        for wire in whole:
            if wire.step != self._next_step:
                raise ProtocolError(
                    f"run {self._wanted.run_id}: the miner sent step {wire.step} where step "
                    f"{self._next_step} was due"
                )
            batch = decode_batch(wire)
            with self._changed:
                self._buffer.append(batch)
                self._next_step += 1
                self._changed.notify_all()
