"""Where the figures for Prometheus are served."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MetricsConfig"]


class MetricsConfig(BaseModel):
    """Settings of the endpoint that Prometheus scrapes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of http://host:port/metrics. None: no endpoint, nothing is opened that "
        "nobody asked for; 0: any free one, which is logged and published.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. This machine only: whoever reaches the port reads "
        "figures and run ids, without credentials; never samples or row ids. Another one needs "
        "serving.allow_insecure_bind.",
    )
