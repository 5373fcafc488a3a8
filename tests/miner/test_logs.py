"""JSON log lines parse, whatever is logged, in the command and in the workers that it starts."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.logs import JsonFormatter, LogFormat, chosen_format

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def line_of(message: str, *args: Any, extra: dict[str, Any] | None = None, **more: Any) -> str:
    logger = logging.Logger("miner.some.module")
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter(rank=3).format(record))

    logger.addHandler(Keep())
    logger.warning(message, *args, extra=extra, **more)
    return lines[0]


def test_a_line_has_time_level_logger_message_and_the_fields_of_the_event() -> None:
    line = json.loads(line_of("round %d sealed", 7, extra={"round": 7, "phases_s": {"a": 0.5}}))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "miner.some.module",
        "message": "round 7 sealed",
        "rank": 3,
        "round": 7,
        "phases_s": {"a": 0.5},
    }


def test_no_event_can_pass_for_another_level_or_logger() -> None:
    line = json.loads(line_of("text", extra={"level": "DEBUG", "logger": "other", "time": 0}))
    assert (line["level"], line["logger"]) == ("WARNING", "miner.some.module")


@given(st.text(), st.dictionaries(st.text(min_size=1).map(lambda t: "x" + t), VALUES, max_size=4))
def test_whatever_is_logged_is_one_line_that_parses(message: str, extra: dict[str, Any]) -> None:
    line = line_of("%s", message, extra=extra)
    assert "\n" not in line
    parsed = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert parsed["message"] == message
    assert extra.keys() <= parsed.keys()


def test_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("three\nlines")
    except ValueError:
        line = json.loads(line_of("it failed", exc_info=True))
    assert line["exception"].startswith("Traceback")
    assert "three\nlines" in line["exception"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "miner", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_the_option_and_the_variable_choose_the_format_and_text_is_the_default(
    tmp_path: Path,
) -> None:
    wrong = ("verify", str(tmp_path))
    for done in (run("--log-format", "json", *wrong), run(*wrong, COALFACE_LOG_FORMAT="json")):
        assert done.returncode == 1
        line = json.loads(done.stderr)
        assert (line["level"], line["error"]) == ("ERROR", "RoundLogError")
        assert "there is no round log" in line["message"]
    assert run(*wrong).stderr.startswith("RoundLogError: there is no round log")
    assert run("--log-format", "xml", *wrong).returncode == 2


def test_an_unknown_format_in_the_environment_of_a_worker_is_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COALFACE_LOG_FORMAT", "xml")
    assert chosen_format() is LogFormat.TEXT
    monkeypatch.setenv("COALFACE_LOG_FORMAT", "json")
    assert chosen_format() is LogFormat.JSON
