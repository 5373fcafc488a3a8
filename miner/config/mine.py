"""The tree of settings behind one ``mine``: a round without a service."""

from __future__ import annotations

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from miner.core.config import SelectionConfig
from miner.index.config import IndexConfig
from miner.rounds.config import RoundsConfig
from miner.types import IdentityTable

__all__ = ["MineConfig"]

MAX_GROUPS = 1 << 22
"""The most that `selection.groups_per_round` takes."""


class MineConfig(BaseModel):
    """Everything that ``coalface-miner mine`` needs to know beside its input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Keys every draw of the round. 0: any will do."
    )
    index: IndexConfig = IndexConfig()
    selection: SelectionConfig = Field(
        default=SelectionConfig(),
        description="As for a service, but where groups_per_round is not set, every row that can "
        "be an anchor is one: an offline round is used for a whole epoch.",
    )
    rounds: RoundsConfig = RoundsConfig()

    @field_validator("rounds")
    @classmethod
    def _no_archive(cls, rounds: RoundsConfig) -> RoundsConfig:
        if rounds.archive_uri is not None:
            raise ValueError("archive_uri is for a service: copy the folder of offline rounds")
        return rounds

    def for_samples(self, identities: IdentityTable) -> MineConfig:
        """These settings with `selection.groups_per_round` filled in, if it is not set."""
        if "groups_per_round" in self.selection.model_fields_set:
            return self
        sizes_I = identities.sizes_I
        num_groups = min(int(sizes_I[sizes_I >= 2].sum()), MAX_GROUPS)
        selection = self.selection.model_copy(update={"groups_per_round": num_groups})
        return self.model_copy(update={"selection": selection})

    @model_serializer(mode="wrap")
    def _without_what_the_samples_decide(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """So that the printed tree, read again, means the same."""
        tree: dict[str, Any] = handler(self)
        if "groups_per_round" not in self.selection.model_fields_set:
            del tree["selection"]["groups_per_round"]
        return tree
