"""The hand-over of one stream: order, bound, and no delay."""

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from miner.serving.outbox import Outbox

LIMIT, TOGETHER = 1000, 700


def batch(step: int, num_bytes: int) -> bytes:
    return step.to_bytes(4, "little") + b"x" * num_bytes


def step_of(content: bytes) -> int:
    return int.from_bytes(content[:4], "little")


async def pass_through(sizes: list[int], pauses: list[bool]) -> list[list[bytes]]:
    outbox = Outbox(LIMIT)

    async def fill() -> None:
        for step, size in enumerate(sizes):
            await outbox.put(batch(step, size))
        outbox.close()

    filling = asyncio.create_task(fill())
    messages = []
    for slow in [*pauses, *[True] * len(sizes), True]:
        if slow:
            for _ in range(len(sizes)):
                await asyncio.sleep(0)
        taken = await outbox.take(5.0, TOGETHER)
        if taken is None:
            break
        assert taken, "nothing came in 5 s"
        messages.append(taken)
    await filling
    return messages


@given(
    sizes=st.lists(st.integers(0, 1500), max_size=30),
    pauses=st.lists(st.booleans(), max_size=40),
)
def test_batches_keep_their_order_and_messages_their_bound(
    sizes: list[int], pauses: list[bool]
) -> None:
    messages = asyncio.run(pass_through(sizes, pauses))
    assert [step_of(item) for message in messages for item in message] == list(range(len(sizes)))
    for message in messages:
        assert len(message) == 1 or sum(len(item) for item in message) <= TOGETHER


def test_a_lone_batch_is_given_at_once() -> None:
    async def scene() -> float:
        outbox = Outbox(LIMIT)
        begin_s = time.monotonic()
        await outbox.put(batch(0, 10))
        taken = await outbox.take(5.0, TOGETHER)
        assert taken is not None
        assert len(taken) == 1
        return time.monotonic() - begin_s

    assert asyncio.run(scene()) < 1.0


def test_nothing_within_the_timeout_is_an_empty_list() -> None:
    assert asyncio.run(Outbox(LIMIT).take(0.01, TOGETHER)) == []


def test_closing_frees_a_blocked_producer_and_keeps_what_is_ready() -> None:
    async def scene() -> tuple[list[int], object]:
        outbox = Outbox(LIMIT)
        await outbox.put(batch(0, 900))
        blocked = asyncio.create_task(outbox.put(batch(1, 900)))
        await asyncio.sleep(0.01)
        assert not blocked.done()
        outbox.close()
        ready = await outbox.take(1.0, TOGETHER)
        await asyncio.wait_for(blocked, 1.0)
        assert ready is not None
        return [step_of(item) for item in ready], await outbox.take(1.0, TOGETHER)

    assert asyncio.run(scene()) == ([0], None)
