"""Every error that the miner raises on purpose; it does not know gRPC.

CoalfaceError
├── ConfigError             a configuration key is unknown, missing or out of range
├── DatasetError            the dataset breaks the contract; names file, column and offenders
├── EncoderError            an entry point does not load, or its output has the wrong form
├── WeightsRefusedError     announced weights are not accepted; the last good round stays
├── SnapshotError           a snapshot is incomplete, damaged or cannot be made
│   ├── PoisonSampleError   one sample cannot be preprocessed or embedded
│   └── NonFiniteError      embeddings with NaN or infinity
├── SearchError             the index cannot answer
├── SelectionError          no group can be made from the given candidates
├── RoundLogError           the log cannot be written or read
│   ├── DamagedRoundError   a sealed chunk or manifest does not match its digest
│   ├── DamagedRunError     a run's parameters, plan or commit are not what was written
│   ├── DiskError           disk or archive refuse, for now maybe: full, read-only, away
│   ├── RoundExpiredError   the round was removed by retention, or never existed
│   └── StaleWriterError    a newer writer holds the log
├── RequestError            a client's request is malformed; names the field
├── LimitError              a request asks for more than the service allows at once
│   └── BusyError           for now: the same may be allowed in a moment
├── UnauthenticatedError    who asks cannot be told: no credentials, or wrong ones
├── ForbiddenError          who asks is known, and may not do this
├── RunError                a run cannot be opened or advanced
│   ├── UnknownRunError     no run with this id
│   ├── RunConflictError    the run exists with other parameters, or does not fit the round
│   └── StepRangeError      the step lies outside what the plan can reach
└── NotReadyError           starting, draining or busy with it already: try again later
"""

__all__ = [
    "BusyError",
    "CoalfaceError",
    "ConfigError",
    "DamagedRoundError",
    "DamagedRunError",
    "DatasetError",
    "DiskError",
    "EncoderError",
    "ForbiddenError",
    "LimitError",
    "NonFiniteError",
    "NotReadyError",
    "PoisonSampleError",
    "RequestError",
    "RoundExpiredError",
    "RoundLogError",
    "RunConflictError",
    "RunError",
    "SearchError",
    "SelectionError",
    "SnapshotError",
    "StaleWriterError",
    "StepRangeError",
    "UnauthenticatedError",
    "UnknownRunError",
    "WeightsRefusedError",
]


class CoalfaceError(Exception):
    """Base of all errors of the miner; its text is meant for a person."""


class ConfigError(CoalfaceError):
    """A configuration key is unknown, missing or out of range."""


class DatasetError(CoalfaceError):
    """The dataset breaks its contract; the text names file, column and first offenders."""


class EncoderError(CoalfaceError):
    """An encoder or preprocess entry point does not load, or its output has the wrong form."""


class WeightsRefusedError(CoalfaceError):
    """Announced weights are not accepted.

    Attributes:
        kind: Which check they did not pass, one of `KINDS`.
    """

    KINDS = ("location", "unreadable", "digest", "format", "names", "shapes", "canary", "other")

    def __init__(self, text: str, kind: str = "other") -> None:
        assert kind in self.KINDS, kind
        super().__init__(text)
        self.kind = kind


class SnapshotError(CoalfaceError):
    """A snapshot is incomplete, damaged or cannot be made."""


class PoisonSampleError(SnapshotError):
    """A sample cannot be preprocessed or embedded; the text names row id and sample id."""


class NonFiniteError(SnapshotError):
    """Embeddings hold NaN or infinity; the text names the first row ids."""


class SearchError(CoalfaceError):
    """The index cannot answer the search."""


class SelectionError(CoalfaceError):
    """No group can be made from the given candidates and configuration."""


class RoundLogError(CoalfaceError):
    """The round log cannot be written or read."""


class DamagedRoundError(RoundLogError):
    """A sealed chunk or manifest is missing, truncated or does not match its digest."""


class DamagedRunError(RoundLogError):
    """A run's parameters, plan or committed step are not what was written."""


class DiskError(RoundLogError):
    """Disk or archive refuse a read or a write, which may succeed if it is repeated later."""


class RoundExpiredError(RoundLogError):
    """The round was removed by retention, or never existed."""


class StaleWriterError(RoundLogError):
    """A writer of a newer generation has taken over the log."""


class RequestError(CoalfaceError):
    """A client's request is malformed; the text begins with the field's name."""


class LimitError(CoalfaceError):
    """A request asks for more than the service allows at once; the text names the limit."""


class BusyError(LimitError):
    """As much is under way as the service allows; the same request may be allowed in a moment."""


class UnauthenticatedError(CoalfaceError):
    """Who asks cannot be told: no credentials, or wrong ones."""


class ForbiddenError(CoalfaceError):
    """Who asks is known, and may not do this; the text names the role that may."""


class RunError(CoalfaceError):
    """A run cannot be opened or advanced."""


class UnknownRunError(RunError):
    """No run with this id has been opened on this log."""


class RunConflictError(RunError):
    """The run exists with other parameters, or its batches cannot hold the round's groups."""


class StepRangeError(RunError):
    """The step lies outside what the plan can reach."""


class NotReadyError(CoalfaceError):
    """The service is starting, draining or busy; the request may be repeated later."""
