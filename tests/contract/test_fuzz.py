"""Every rpc under requests that make no sense: a documented code each, no crash, no hang.

Messages are drawn from the descriptors, so a new rpc or field is covered by itself. One server gets
them all; at its end it still serves what it served at the beginning.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from miner.serving.queries import LiveSnapshot
from miner.types import IdentityTable
from protos.coalface.v1 import mining_pb2
from tests.trainer.feed.served_miner import NUM_IDENTITIES, NUM_ROWS, ServerThread, make_folder

SERVICE = mining_pb2.DESCRIPTOR.services_by_name["MiningService"]
METHODS = list(SERVICE.methods)
REFUSALS = {
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
}
DIM, DEADLINE_S, SOME = 4, 20.0, 3
LARGEST = 5 * 2**20
EXAMPLES = 120
"""Of each rpc, in the quick run; `make test-all` sends ten times as many."""

INTEGERS = st.one_of(st.integers(-2, 40), st.sampled_from([-(2**31), 2**31 - 1, 65_536, 65_537]))
TEXTS = st.one_of(
    st.sampled_from(["open", "../escape", "a" * 64, "0" * 64, "\0", ".", "x" * 300, "y" * 50_000]),
    st.text(max_size=40),
    st.text(min_size=1, max_size=40).map(lambda text: text * 200),
    st.sampled_from(["\u6df1", "\U0001f600", "\x7f", "%"]).map(lambda one: one * 5000),
)
ARRAYS = st.one_of(
    st.binary(max_size=40),
    st.lists(st.integers(-2, NUM_ROWS + 2), max_size=6).map(lambda v: np.array(v, "<i8").tobytes()),
    st.lists(st.integers(-2, NUM_IDENTITIES + 1), max_size=6).map(
        lambda v: np.array(v, "<i4").tobytes()
    ),
    st.lists(st.floats(width=32), max_size=12).map(lambda v: np.array(v, "<f4").tobytes()),
)
FLOATS = st.one_of(st.floats(width=32), st.sampled_from([0.0, 0.5, 1.0, -1.0]))


def values_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        one: st.SearchStrategy[Any] = messages_of(field.message_type)
    elif kind == FieldDescriptor.CPPTYPE_STRING:
        one = ARRAYS if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
    elif kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        one = FLOATS
    elif kind == FieldDescriptor.CPPTYPE_BOOL:
        one = st.booleans()
    elif kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
        one = st.one_of(st.integers(0, 40), st.just(2**32 - 1))
    else:
        one = INTEGERS
    return one


def messages_of(descriptor: Any) -> st.SearchStrategy[Message]:
    fields = {field.name: values_of(field) for field in descriptor.fields}
    kind = GetMessageClass(descriptor)
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: kind(**values))


REQUESTS = {method.name: messages_of(method.input_type) for method in METHODS}


@pytest.fixture(scope="module")
def miner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    server = ServerThread(make_folder(tmp_path_factory.mktemp("fuzz")))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(NUM_ROWS, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = np.arange(NUM_ROWS, dtype=np.int32) // (NUM_ROWS // NUM_IDENTITIES)
    kin = np.arange(NUM_IDENTITIES, dtype=np.int32)
    server.backend.live = LiveSnapshot(1, 0, rows, IdentityTable.from_ids(ids), kin)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def channel(miner: ServerThread) -> Iterator[grpc.Channel]:
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(miner.address, options=unlimited) as channel:
        send(channel, METHODS[0], [mining_pb2.OpenRunRequest(run_id="open", batch_rows=24)])
        yield channel


def send(channel: grpc.Channel, method: MethodDescriptor, requests: list[Any]) -> tuple[str, str]:
    """Code and text of the answer; of an endless stream once it has said something."""
    path = f"/{SERVICE.full_name}/{method.name}"
    raw = {
        "request_serializer": lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        "response_deserializer": GetMessageClass(method.output_type).FromString,
    }
    try:
        if method.client_streaming:
            channel.stream_unary(path, **raw)(iter(requests), timeout=DEADLINE_S)
        elif method.server_streaming:
            call = channel.unary_stream(path, **raw)(requests[0], timeout=DEADLINE_S)
            list(itertools.islice(call, 1 if method.name == "WatchStatus" else SOME))
            call.cancel()
        else:
            channel.unary_unary(path, **raw)(requests[0], timeout=DEADLINE_S)
    except grpc.RpcError as exc:
        error: Any = exc
        return error.code().name, error.details()
    return "OK", ""


def check_method(channel: grpc.Channel, method: MethodDescriptor, num_examples: int) -> set[str]:
    """Send so many drawn requests; the codes that came back."""
    seen: set[str] = set()

    @settings(
        max_examples=num_examples,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        database=None,
    )
    @given(st.lists(REQUESTS[method.name], min_size=1, max_size=3))
    def each(requests: list[Message]) -> None:
        code, text = send(channel, method, requests)
        seen.add(code)
        assert code in {"OK", *REFUSALS}, f"{code}: {text}"
        assert len(text.encode()) < 1100
        assert "metadata" not in text
        if code == "INVALID_ARGUMENT":
            assert ": " in text, "the field is named"

    each()
    return seen


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_requests_without_sense_get_a_documented_code(
    channel: grpc.Channel, method: MethodDescriptor
) -> None:
    seen = check_method(channel, method, EXAMPLES)
    assert seen & ({"OK"} | REFUSALS)


@pytest.mark.parametrize("one", ["x", "\u00e9", "\u6df1", "\U0001f600", "\x7f", "%", "\n"])
def test_a_long_text_is_quoted_as_far_as_metadata_goes_in_any_script(
    channel: grpc.Channel, one: str
) -> None:
    by_name = {method.name: method for method in METHODS}
    request = mining_pb2.OpenRunRequest(run_id=one * 5000, batch_rows=24)
    code, text = send(channel, by_name["OpenRun"], [request])
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("run_id: ")
    assert text.endswith(" ...")
    unknown = mining_pb2.CommitStepRequest(run_id=one * 5000)
    assert send(channel, by_name["CommitStep"], [unknown])[0] == "NOT_FOUND"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bytes_that_are_no_message_are_refused_and_do_no_harm(
    channel: grpc.Channel, method: MethodDescriptor
) -> None:
    if not method.input_type.fields:
        pytest.skip("every field is unknown there, and passed over")
    rng = np.random.default_rng(1)
    for size in (1, 5, 50, 5000):
        code, text = send(channel, method, [b"\x0a\xff" + rng.bytes(size)])
        assert code == "INVALID_ARGUMENT"
        assert text.startswith("request: ")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_request_above_the_limit_is_refused(
    channel: grpc.Channel, method: MethodDescriptor
) -> None:
    unknown_field = b"\xfa\x3f" + _varint(LARGEST) + bytes(LARGEST)
    code, text = send(channel, method, [unknown_field])
    assert code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in text


def test_afterwards_the_server_serves_as_before(channel: grpc.Channel, miner: ServerThread) -> None:
    request = mining_pb2.StreamTripletsRequest(
        run_id="open", num_steps=3, world_size=1, with_payload=True
    )
    by_name = {method.name: method for method in METHODS}
    assert send(channel, by_name["StreamTriplets"], [request]) == ("OK", "")
    assert miner.log.verify() == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ten_thousand_and_more(channel: grpc.Channel) -> None:
    for method in METHODS:
        check_method(channel, method, 10 * EXAMPLES)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
