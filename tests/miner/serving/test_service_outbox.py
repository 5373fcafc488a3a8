"""The hand-over of one stream: order, no delay, and a producer that waits."""

import asyncio
import time
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from miner.serving.outbox import Outbox

TOGETHER = 700


def batch(step: int, num_bytes: int) -> bytes:
    return step.to_bytes(4, "little") + b"x" * num_bytes


def step_of(content: bytes) -> int:
    return int.from_bytes(content[:4], "little")


async def pass_through(sizes: list[list[int]], pauses: list[bool]) -> list[list[bytes]]:
    outbox, steps = Outbox(), count()

    async def fill() -> None:
        for together in sizes:
            await outbox.taken()
            outbox.put([batch(next(steps), size) for size in together])
        outbox.close()

    filling = asyncio.create_task(fill())
    messages = []
    for slow in [*pauses, *[True] * sum(map(len, sizes)), True]:
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
    sizes=st.lists(st.lists(st.integers(0, 1500), max_size=6), max_size=8),
    pauses=st.lists(st.booleans(), max_size=40),
)
def test_batches_keep_their_order_and_messages_their_bound(
    sizes: list[list[int]], pauses: list[bool]
) -> None:
    messages = asyncio.run(pass_through(sizes, pauses))
    steps = [step_of(item) for message in messages for item in message]
    assert steps == list(range(sum(map(len, sizes))))
    for message in messages:
        assert len(message) == 1 or sum(len(item) for item in message) <= TOGETHER


def test_a_lone_batch_is_given_at_once() -> None:
    async def scene() -> float:
        outbox = Outbox()
        begin_s = time.monotonic()
        outbox.put([batch(0, 10)])
        taken = await outbox.take(5.0, TOGETHER)
        assert taken is not None
        assert len(taken) == 1
        return time.monotonic() - begin_s

    assert asyncio.run(scene()) < 1.0


def test_nothing_within_the_timeout_is_an_empty_list() -> None:
    assert asyncio.run(Outbox().take(0.01, TOGETHER)) == []


def test_the_producer_waits_until_all_is_taken() -> None:
    async def scene() -> list[bool]:
        outbox = Outbox()
        outbox.put([batch(step, 600) for step in range(3)])
        waiting = asyncio.create_task(outbox.taken())
        was_free = []
        for _ in range(3):
            await asyncio.sleep(0.01)
            was_free.append(waiting.done())
            await outbox.take(1.0, TOGETHER)
        await asyncio.wait_for(waiting, 1.0)
        return was_free

    assert asyncio.run(scene()) == [False, False, False]


def test_closing_frees_a_waiting_producer_and_keeps_what_is_ready() -> None:
    async def scene() -> tuple[list[int], object]:
        outbox = Outbox()
        outbox.put([batch(0, 300), batch(1, 300)])
        waiting = asyncio.create_task(outbox.taken())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        outbox.close()
        outbox.put([batch(2, 10)])  # too late
        await asyncio.wait_for(waiting, 1.0)
        ready = await outbox.take(1.0, TOGETHER)
        assert ready is not None
        return [step_of(item) for item in ready], await outbox.take(1.0, TOGETHER)

    assert asyncio.run(scene()) == ([0, 1], None)
