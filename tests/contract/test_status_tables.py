"""Every error of the miner has a status code, and every code comes back as a trainer error."""

import inspect
from typing import Any

import grpc
import pytest

from miner import errors as miner_errors
from miner.serving.status_codes import STATUS_CODES, status_of
from trainer import errors as trainer_errors
from trainer.feed.status_codes import ERRORS, error_of, retry_after_s

MINER_ERRORS = [
    kind
    for _, kind in inspect.getmembers(miner_errors, inspect.isclass)
    if issubclass(kind, miner_errors.CoalfaceError)
]


class FailedCall(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, text: str, metadata: Any = ()) -> None:
        super().__init__(text)
        self.code = lambda: code
        self.details = lambda: text
        self.trailing_metadata = lambda: metadata


def test_the_table_of_codes_lists_exactly_the_errors_of_the_miner() -> None:
    assert set(STATUS_CODES) == set(MINER_ERRORS)
    assert {kind.__name__ for kind in MINER_ERRORS} == set(miner_errors.__all__)


@pytest.mark.parametrize("kind", MINER_ERRORS)
def test_every_error_of_the_miner_becomes_its_own_code_and_a_specific_trainer_error(
    kind: type[miner_errors.CoalfaceError],
) -> None:
    code = status_of(kind("what happened"))
    assert code is STATUS_CODES[kind]
    error = error_of(FailedCall(code, "what happened"))
    assert type(error) is ERRORS[code]
    assert type(error) is not trainer_errors.FeedError
    assert "what happened" in str(error)
    assert code.name in str(error)


def test_a_subclass_without_a_row_takes_its_parents_code() -> None:
    class NewKindOfConflict(miner_errors.RunConflictError):
        pass

    assert status_of(NewKindOfConflict()) is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_every_code_that_grpc_has_maps_to_a_trainer_error(code: grpc.StatusCode) -> None:
    assert isinstance(error_of(FailedCall(code, "")), trainer_errors.FeedError)


def test_only_what_another_attempt_can_mend_counts_as_unreachable() -> None:
    retried = {
        kind
        for kind, code in STATUS_CODES.items()
        if ERRORS[code] is trainer_errors.MinerUnreachableError
    }
    assert retried == {
        miner_errors.DiskError,
        miner_errors.NotReadyError,
        miner_errors.StaleWriterError,
    }


def test_every_feed_error_can_come_out_of_a_status() -> None:
    reachable = {*ERRORS.values(), trainer_errors.WeightsRefusedError}
    assert reachable == set(trainer_errors.FeedError.__subclasses__())


def test_a_failed_precondition_means_what_the_request_was_about() -> None:
    failed = FailedCall(grpc.StatusCode.FAILED_PRECONDITION, "the digest does not match")
    assert type(error_of(failed)) is trainer_errors.RunRefusedError
    refused = error_of(failed, trainer_errors.WeightsRefusedError)
    assert type(refused) is trainer_errors.WeightsRefusedError


def test_the_hint_of_when_to_come_back_is_read_in_seconds() -> None:
    code = grpc.StatusCode.UNAVAILABLE
    assert retry_after_s(FailedCall(code, "", (("retry-after-ms", "1500"),))) == 1.5
    assert retry_after_s(FailedCall(code, "", ())) == 0.0
    assert retry_after_s(FailedCall(code, "", None)) == 0.0
