"""Log lines as text for a person, or as JSON for a machine. Standard library only.

A JSON line is one object: ``time``, ``level``, ``logger``, ``message``, what the event was logged
with as ``extra=``, and ``exception`` with the traceback where there is one. The miner has the same
in its own `logs`: the two packages do not know each other.
"""

from __future__ import annotations

import json
import logging
import os
import time
from enum import StrEnum
from typing import Any

__all__ = [
    "LOG_FORMAT_VARIABLE",
    "JsonFormatter",
    "LogFormat",
    "chosen_format",
    "set_up_logs",
]

LOG_FORMAT_VARIABLE = "COALFACE_LOG_FORMAT"
_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class JsonFormatter(logging.Formatter):
    """One line, one JSON object; whatever is logged, the line parses.

    Args:
        fields: Stand in every line; those of an event win over them, and the first four over both.
    """

    def __init__(self, **fields: object) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; numbers that JSON does not know become text."""
        whole_s = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "time": f"{whole_s}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        for key, value in (self._fields | extra).items():
            if not key.startswith("_"):  # a library may add to every record
                fields.setdefault(key, value)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: _plain(value) for key, value in fields.items()}, default=str)


def _plain(value: object) -> object:
    """The value, or its text where JSON has none for it: NaN, keys that are no text, circles."""
    try:
        json.dumps(value, default=str, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value


def chosen_format() -> LogFormat:
    """What the environment says; text if it says nothing, or nothing known."""
    try:
        return LogFormat(os.environ.get(LOG_FORMAT_VARIABLE, LogFormat.TEXT))
    except ValueError:
        return LogFormat.TEXT


def set_up_logs(level: int, form: LogFormat, rank: int) -> None:
    """Set up the root logger of a rank; every JSON line names it."""
    os.environ[LOG_FORMAT_VARIABLE] = form
    if form is LogFormat.TEXT:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(rank=rank))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)
