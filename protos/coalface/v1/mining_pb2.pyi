from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExhaustedPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXHAUSTED_POLICY_UNSPECIFIED: _ClassVar[ExhaustedPolicy]
    EXHAUSTED_POLICY_REPEAT: _ClassVar[ExhaustedPolicy]
    EXHAUSTED_POLICY_WAIT: _ClassVar[ExhaustedPolicy]

class StalePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STALE_POLICY_UNSPECIFIED: _ClassVar[StalePolicy]
    STALE_POLICY_SERVE: _ClassVar[StalePolicy]
    STALE_POLICY_WAIT: _ClassVar[StalePolicy]

class RefreshPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFRESH_PHASE_UNSPECIFIED: _ClassVar[RefreshPhase]
    REFRESH_PHASE_IDLE: _ClassVar[RefreshPhase]
    REFRESH_PHASE_EMBEDDING: _ClassVar[RefreshPhase]
    REFRESH_PHASE_SEARCHING: _ClassVar[RefreshPhase]
    REFRESH_PHASE_SELECTING: _ClassVar[RefreshPhase]
    REFRESH_PHASE_SEALING: _ClassVar[RefreshPhase]
EXHAUSTED_POLICY_UNSPECIFIED: ExhaustedPolicy
EXHAUSTED_POLICY_REPEAT: ExhaustedPolicy
EXHAUSTED_POLICY_WAIT: ExhaustedPolicy
STALE_POLICY_UNSPECIFIED: StalePolicy
STALE_POLICY_SERVE: StalePolicy
STALE_POLICY_WAIT: StalePolicy
REFRESH_PHASE_UNSPECIFIED: RefreshPhase
REFRESH_PHASE_IDLE: RefreshPhase
REFRESH_PHASE_EMBEDDING: RefreshPhase
REFRESH_PHASE_SEARCHING: RefreshPhase
REFRESH_PHASE_SELECTING: RefreshPhase
REFRESH_PHASE_SEALING: RefreshPhase

class OpenRunRequest(_message.Message):
    __slots__ = ("run_id", "batch_rows", "seed", "exhausted_policy", "stale_policy", "max_staleness_steps", "dataset_fingerprint")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EXHAUSTED_POLICY_FIELD_NUMBER: _ClassVar[int]
    STALE_POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_STEPS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    batch_rows: int
    seed: int
    exhausted_policy: ExhaustedPolicy
    stale_policy: StalePolicy
    max_staleness_steps: int
    dataset_fingerprint: str
    def __init__(self, run_id: _Optional[str] = ..., batch_rows: _Optional[int] = ..., seed: _Optional[int] = ..., exhausted_policy: _Optional[_Union[ExhaustedPolicy, str]] = ..., stale_policy: _Optional[_Union[StalePolicy, str]] = ..., max_staleness_steps: _Optional[int] = ..., dataset_fingerprint: _Optional[str] = ...) -> None: ...

class OpenRunResponse(_message.Message):
    __slots__ = ("dataset_fingerprint", "planned_steps", "committed_step", "stride_steps", "created")
    DATASET_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PLANNED_STEPS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_STEP_FIELD_NUMBER: _ClassVar[int]
    STRIDE_STEPS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    dataset_fingerprint: str
    planned_steps: int
    committed_step: int
    stride_steps: int
    created: bool
    def __init__(self, dataset_fingerprint: _Optional[str] = ..., planned_steps: _Optional[int] = ..., committed_step: _Optional[int] = ..., stride_steps: _Optional[int] = ..., created: bool = ...) -> None: ...

class StreamTripletsRequest(_message.Message):
    __slots__ = ("run_id", "first_step", "num_steps", "rank", "world_size", "with_payload")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    WITH_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    first_step: int
    num_steps: int
    rank: int
    world_size: int
    with_payload: bool
    def __init__(self, run_id: _Optional[str] = ..., first_step: _Optional[int] = ..., num_steps: _Optional[int] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., with_payload: bool = ...) -> None: ...

class StreamTripletsResponse(_message.Message):
    __slots__ = ("batches", "heartbeat", "part")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[Batch]
    heartbeat: Heartbeat
    part: BatchPart
    def __init__(self, batches: _Optional[_Iterable[_Union[Batch, _Mapping]]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., part: _Optional[_Union[BatchPart, _Mapping]] = ...) -> None: ...

class BatchPart(_message.Message):
    __slots__ = ("step", "offset", "total_bytes", "content")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    step: int
    offset: int
    total_bytes: int
    content: bytes
    def __init__(self, step: _Optional[int] = ..., offset: _Optional[int] = ..., total_bytes: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("next_step", "reason")
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    next_step: int
    reason: str
    def __init__(self, next_step: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("step", "round_id", "model_step", "staleness_steps", "over_stale", "strategy", "pass_number", "global_rows", "global_groups", "first_group", "row_ids", "identity_ids", "group_offsets", "anchors", "positives", "negatives", "similarities_ap", "similarities_an", "tiers", "payload")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_STEP_FIELD_NUMBER: _ClassVar[int]
    STALENESS_STEPS_FIELD_NUMBER: _ClassVar[int]
    OVER_STALE_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    PASS_NUMBER_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_ROWS_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_GROUPS_FIELD_NUMBER: _ClassVar[int]
    FIRST_GROUP_FIELD_NUMBER: _ClassVar[int]
    ROW_IDS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_IDS_FIELD_NUMBER: _ClassVar[int]
    GROUP_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    ANCHORS_FIELD_NUMBER: _ClassVar[int]
    POSITIVES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVES_FIELD_NUMBER: _ClassVar[int]
    SIMILARITIES_AP_FIELD_NUMBER: _ClassVar[int]
    SIMILARITIES_AN_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    step: int
    round_id: int
    model_step: int
    staleness_steps: int
    over_stale: bool
    strategy: str
    pass_number: int
    global_rows: int
    global_groups: int
    first_group: int
    row_ids: bytes
    identity_ids: bytes
    group_offsets: bytes
    anchors: bytes
    positives: bytes
    negatives: bytes
    similarities_ap: bytes
    similarities_an: bytes
    tiers: bytes
    payload: bytes
    def __init__(self, step: _Optional[int] = ..., round_id: _Optional[int] = ..., model_step: _Optional[int] = ..., staleness_steps: _Optional[int] = ..., over_stale: bool = ..., strategy: _Optional[str] = ..., pass_number: _Optional[int] = ..., global_rows: _Optional[int] = ..., global_groups: _Optional[int] = ..., first_group: _Optional[int] = ..., row_ids: _Optional[bytes] = ..., identity_ids: _Optional[bytes] = ..., group_offsets: _Optional[bytes] = ..., anchors: _Optional[bytes] = ..., positives: _Optional[bytes] = ..., negatives: _Optional[bytes] = ..., similarities_ap: _Optional[bytes] = ..., similarities_an: _Optional[bytes] = ..., tiers: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...

class CommitStepRequest(_message.Message):
    __slots__ = ("run_id", "step")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    step: int
    def __init__(self, run_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class CommitStepResponse(_message.Message):
    __slots__ = ("committed_step",)
    COMMITTED_STEP_FIELD_NUMBER: _ClassVar[int]
    committed_step: int
    def __init__(self, committed_step: _Optional[int] = ...) -> None: ...

class AnnounceWeightsRequest(_message.Message):
    __slots__ = ("step", "uri", "sha256")
    STEP_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    step: int
    uri: str
    sha256: str
    def __init__(self, step: _Optional[int] = ..., uri: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class AnnounceWeightsResponse(_message.Message):
    __slots__ = ("superseded",)
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    superseded: bool
    def __init__(self, superseded: bool = ...) -> None: ...

class UploadWeightsRequest(_message.Message):
    __slots__ = ("header", "content")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    content: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., content: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("step", "sha256", "total_bytes")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    step: int
    sha256: str
    total_bytes: int
    def __init__(self, step: _Optional[int] = ..., sha256: _Optional[str] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class QueryNegativesRequest(_message.Message):
    __slots__ = ("rows", "embeddings", "num_negatives", "max_similarity")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    NUM_NEGATIVES_FIELD_NUMBER: _ClassVar[int]
    MAX_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    rows: RowQueries
    embeddings: EmbeddingQueries
    num_negatives: int
    max_similarity: float
    def __init__(self, rows: _Optional[_Union[RowQueries, _Mapping]] = ..., embeddings: _Optional[_Union[EmbeddingQueries, _Mapping]] = ..., num_negatives: _Optional[int] = ..., max_similarity: _Optional[float] = ...) -> None: ...

class RowQueries(_message.Message):
    __slots__ = ("row_ids",)
    ROW_IDS_FIELD_NUMBER: _ClassVar[int]
    row_ids: bytes
    def __init__(self, row_ids: _Optional[bytes] = ...) -> None: ...

class EmbeddingQueries(_message.Message):
    __slots__ = ("embeddings", "identity_ids", "dim")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_IDS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    embeddings: bytes
    identity_ids: bytes
    dim: int
    def __init__(self, embeddings: _Optional[bytes] = ..., identity_ids: _Optional[bytes] = ..., dim: _Optional[int] = ...) -> None: ...

class QueryNegativesResponse(_message.Message):
    __slots__ = ("round_id", "model_step", "num_negatives", "row_ids", "identity_ids", "similarities")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_NEGATIVES_FIELD_NUMBER: _ClassVar[int]
    ROW_IDS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_IDS_FIELD_NUMBER: _ClassVar[int]
    SIMILARITIES_FIELD_NUMBER: _ClassVar[int]
    round_id: int
    model_step: int
    num_negatives: int
    row_ids: bytes
    identity_ids: bytes
    similarities: bytes
    def __init__(self, round_id: _Optional[int] = ..., model_step: _Optional[int] = ..., num_negatives: _Optional[int] = ..., row_ids: _Optional[bytes] = ..., identity_ids: _Optional[bytes] = ..., similarities: _Optional[bytes] = ...) -> None: ...

class GetSamplesRequest(_message.Message):
    __slots__ = ("row_ids",)
    ROW_IDS_FIELD_NUMBER: _ClassVar[int]
    row_ids: bytes
    def __init__(self, row_ids: _Optional[bytes] = ...) -> None: ...

class GetSamplesResponse(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class ReportDifficultyRequest(_message.Message):
    __slots__ = ("run_id", "step", "identity_ids", "losses")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_IDS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    step: int
    identity_ids: bytes
    losses: bytes
    def __init__(self, run_id: _Optional[str] = ..., step: _Optional[int] = ..., identity_ids: _Optional[bytes] = ..., losses: _Optional[bytes] = ...) -> None: ...

class ReportDifficultyResponse(_message.Message):
    __slots__ = ("num_identities",)
    NUM_IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    num_identities: int
    def __init__(self, num_identities: _Optional[int] = ...) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ("min_interval_s",)
    MIN_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    min_interval_s: float
    def __init__(self, min_interval_s: _Optional[float] = ...) -> None: ...

class ListRoundsRequest(_message.Message):
    __slots__ = ("max_rounds", "before_round_id")
    MAX_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    max_rounds: int
    before_round_id: int
    def __init__(self, max_rounds: _Optional[int] = ..., before_round_id: _Optional[int] = ...) -> None: ...

class ListRoundsResponse(_message.Message):
    __slots__ = ("rounds", "next_before_round_id")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_BEFORE_ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[RoundSummary]
    next_before_round_id: int
    def __init__(self, rounds: _Optional[_Iterable[_Union[RoundSummary, _Mapping]]] = ..., next_before_round_id: _Optional[int] = ...) -> None: ...

class GetRoundRequest(_message.Message):
    __slots__ = ("round_id",)
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    round_id: int
    def __init__(self, round_id: _Optional[int] = ...) -> None: ...

class GetRoundResponse(_message.Message):
    __slots__ = ("summary", "manifest_json")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    summary: RoundSummary
    manifest_json: str
    def __init__(self, summary: _Optional[_Union[RoundSummary, _Mapping]] = ..., manifest_json: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("num_streams",)
    NUM_STREAMS_FIELD_NUMBER: _ClassVar[int]
    num_streams: int
    def __init__(self, num_streams: _Optional[int] = ...) -> None: ...

class RequestRefreshRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RequestRefreshResponse(_message.Message):
    __slots__ = ("model_step",)
    MODEL_STEP_FIELD_NUMBER: _ClassVar[int]
    model_step: int
    def __init__(self, model_step: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "dataset_fingerprint", "num_rows", "num_identities", "rounds", "refresh", "runs", "payload_columns")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DATASET_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    version: str
    dataset_fingerprint: str
    num_rows: int
    num_identities: int
    rounds: _containers.RepeatedCompositeFieldContainer[RoundSummary]
    refresh: RefreshStatus
    runs: _containers.RepeatedCompositeFieldContainer[RunSummary]
    payload_columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., dataset_fingerprint: _Optional[str] = ..., num_rows: _Optional[int] = ..., num_identities: _Optional[int] = ..., rounds: _Optional[_Iterable[_Union[RoundSummary, _Mapping]]] = ..., refresh: _Optional[_Union[RefreshStatus, _Mapping]] = ..., runs: _Optional[_Iterable[_Union[RunSummary, _Mapping]]] = ..., payload_columns: _Optional[_Iterable[str]] = ...) -> None: ...

class RoundSummary(_message.Message):
    __slots__ = ("round_id", "model_step", "strategy", "num_groups", "num_rows", "num_triplets", "created_unix_s")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_STEP_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUPS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_TRIPLETS_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    round_id: int
    model_step: int
    strategy: str
    num_groups: int
    num_rows: int
    num_triplets: int
    created_unix_s: float
    def __init__(self, round_id: _Optional[int] = ..., model_step: _Optional[int] = ..., strategy: _Optional[str] = ..., num_groups: _Optional[int] = ..., num_rows: _Optional[int] = ..., num_triplets: _Optional[int] = ..., created_unix_s: _Optional[float] = ...) -> None: ...

class RefreshStatus(_message.Message):
    __slots__ = ("phase", "model_step", "done", "total", "unit", "num_sealed", "num_failed", "last_error", "busy_s")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MODEL_STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    NUM_SEALED_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    phase: RefreshPhase
    model_step: int
    done: int
    total: int
    unit: str
    num_sealed: int
    num_failed: int
    last_error: str
    busy_s: float
    def __init__(self, phase: _Optional[_Union[RefreshPhase, str]] = ..., model_step: _Optional[int] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., unit: _Optional[str] = ..., num_sealed: _Optional[int] = ..., num_failed: _Optional[int] = ..., last_error: _Optional[str] = ..., busy_s: _Optional[float] = ...) -> None: ...

class RunSummary(_message.Message):
    __slots__ = ("run_id", "planned_steps", "committed_step", "batch_rows")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PLANNED_STEPS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_STEP_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    planned_steps: int
    committed_step: int
    batch_rows: int
    def __init__(self, run_id: _Optional[str] = ..., planned_steps: _Optional[int] = ..., committed_step: _Optional[int] = ..., batch_rows: _Optional[int] = ...) -> None: ...
