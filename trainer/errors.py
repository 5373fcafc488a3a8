"""Every error that the trainer's packages raise on purpose; it does not know gRPC.

TrainerError
├── ConfigError                a setting is unknown, missing or out of range
├── CheckpointError            a checkpoint cannot be written or read
├── EvaluationError            the evaluation set does not allow the measurement
├── TrainingError              a step cannot be taken
└── FeedError                  no batches, or no answer, from the miner
    ├── MinerUnreachableError  no sign of life within the patience
    ├── LimitError             the miner allows no more: too large, or too much at once
    ├── AccessDeniedError      the miner wants credentials that were not given
    ├── BadRequestError        the miner calls a request malformed; names the field
    ├── RunRefusedError        the run exists with other values, or does not fit the round
    ├── WeightsRefusedError    announced weights are not accepted, or none were so far
    ├── StepRangeError         the step lies outside what the miner can plan
    ├── RoundLostError         the run, or a round it needs, is gone or damaged
    ├── MinerFaultError        the miner failed inside; its own log says more
    └── ProtocolError          an answer breaks the wire contract
"""

__all__ = [
    "AccessDeniedError",
    "BadRequestError",
    "CheckpointError",
    "ConfigError",
    "EvaluationError",
    "FeedError",
    "LimitError",
    "MinerFaultError",
    "MinerUnreachableError",
    "ProtocolError",
    "RoundLostError",
    "RunRefusedError",
    "StepRangeError",
    "TrainerError",
    "TrainingError",
    "WeightsRefusedError",
]


class TrainerError(Exception):
    """Base of all errors of the trainer; its text is meant for a person."""


class ConfigError(TrainerError):
    """A setting is unknown, missing or out of range."""


class CheckpointError(TrainerError):
    """A checkpoint cannot be written or read, or belongs to another run."""


class EvaluationError(TrainerError):
    """The evaluation set does not allow the measurement that was asked for."""


class TrainingError(TrainerError):
    """A step cannot be taken: a bad sample, a loss that is not finite, or a lost peer."""


class FeedError(TrainerError):
    """No batches, or no answer, from the miner."""


class MinerUnreachableError(FeedError):
    """No sign of life from the miner within the patience."""


class LimitError(FeedError):
    """The miner allows no more than it did: a request is too large, or too many are under way."""


class AccessDeniedError(FeedError):
    """The miner wants credentials that were not given, or does not accept them."""


class BadRequestError(FeedError):
    """The miner calls a request malformed; the text names the field."""


class RunRefusedError(FeedError):
    """The run exists with other values, or its batches cannot hold the round's groups."""


class WeightsRefusedError(FeedError):
    """Announced weights are not accepted, or a refresh was asked for before any were."""


class StepRangeError(FeedError):
    """The step lies outside what the miner can plan."""


class RoundLostError(FeedError):
    """The run, or a round that it needs, is gone or damaged on the miner's side."""


class MinerFaultError(FeedError):
    """The miner failed inside; its own log says more."""


class ProtocolError(FeedError):
    """An answer breaks the wire contract: another service, or another version of this one."""
