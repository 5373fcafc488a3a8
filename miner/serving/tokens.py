"""The tokens file: who may do what. It holds digests, so whoever reads it can do nothing with it.

It knows no request. A YAML list, one entry for each client::

    - name: trainer-1
      role: read
      sha256: 0c6f...          # of the token
    - name: operator
      role: admin
      certificate: ops.example # a common or alternative name in the client's certificate

A token never becomes part of an error, of a log line or of anything's repr: also not one that was
pasted here in place of its digest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from miner.errors import ConfigError
from miner.rounds.durable import sync_folder
from miner.serving.roles import Role, includes

__all__ = ["Entry", "Tokens", "add_token", "read_tokens"]

logger = logging.getLogger(__name__)

NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"


class Entry(BaseModel):
    """One client, known by its token or by its certificate."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=NAME, description="What the client is called in logs and limits.")
    role: Role = Field(description="What it may do: read, write or admin.")
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="Digest of its token, hex. None: it shows a certificate.",
    )
    certificate: str | None = Field(
        default=None,
        min_length=1,
        description="A name in its certificate. None: it shows a token.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.sha256 is None) == (self.certificate is None):
            raise ValueError("needs either sha256 or certificate")
        return self


class Tokens:
    """The entries of a file, by what a client shows.

    Args:
        entries: Names, digests and certificates all distinct.
    """

    def __init__(self, entries: Collection[Entry]) -> None:
        self.entries = tuple(entries)

    def by_token(self, token: str) -> Entry | None:
        """Whose token it is. Takes as long for a token that is nearly right as for any other."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for entry in self.entries:
            if hmac.compare_digest(entry.sha256 or "", digest):
                found = entry
        return found

    def by_certificate(self, names: Collection[str]) -> Entry | None:
        """Whose certificate bears these names; of several the one that may do most."""
        found: Entry | None = None
        for entry in self.entries:
            known = entry.certificate in names
            if known and (found is None or includes(entry.role, found.role)):
                found = entry
        return found


def read_tokens(path: Path) -> Tokens:
    """The entries of a tokens file.

    A list without entries, ``[]``, is a good one, and lets nobody in; an empty file is none.

    Raises:
        ConfigError: It cannot be read, every user can write to it, it holds no list, or a wrong
            entry; the text names the entry by its place, and repeats nothing of what it holds.
    """
    text = _text(path)
    _check_mode(path)
    tokens = _parsed(path, text)
    if not tokens.entries:
        logger.warning("the tokens file %s holds no entry: nobody is let in", path)
    return tokens


def add_token(path: Path, name: str, role: Role) -> str:
    """Give a client a new random token; the file, made if missing, gets its digest.

    A running service takes it up within seconds: the file is replaced as a whole, and durably. One
    that is made is readable by its owner alone, another keeps its owner and mode. Several at once
    take turns.

    Raises:
        ConfigError: The name is taken or malformed, or the file is wrong or cannot be written.
    """
    token = f"coalface_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(token.encode()).hexdigest()
    entry = yaml.safe_dump([{"name": name, "role": role, "sha256": digest}], sort_keys=False)
    path = path.resolve()
    try:
        _add(path, entry)
    except OSError as exc:
        raise ConfigError(f"cannot write the tokens file {path}: {exc.strerror}") from exc
    return token


def _add(path: Path, entry: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with _held(partial) as file:
        try:
            before = path.stat() if path.exists() else None
            text = entry
            if before is not None:
                kept = _text(path).rstrip().removesuffix("[]").rstrip()
                text = f"{kept}\n{entry}".lstrip()
                _pass_on(before, file.fileno())
            _parsed(path, text)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


@contextlib.contextmanager
def _held(partial: Path) -> Iterator[BinaryIO]:
    """The file that is to take a place, made, empty and locked against others that want to."""
    while True:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(partial, file):  # or whoever held it before has put it in its place
                file.truncate(0)
                yield file
                return


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _pass_on(before: os.stat_result, descriptor: int) -> None:
    """Owner and mode: a service that runs as another user must go on reading its file."""
    made = os.fstat(descriptor)
    if (made.st_uid, made.st_gid) != (before.st_uid, before.st_gid):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as exc:
        raise ConfigError(f"cannot read the tokens file {path}: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise ConfigError(f"the tokens file {path} is not UTF-8") from None


def _check_mode(path: Path) -> None:
    """Who reads digests of random tokens can do nothing with them; who writes can be an admin."""
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise ConfigError(f"cannot read the tokens file {path}: {exc.strerror}") from exc
    if mode & stat.S_IWOTH:
        raise ConfigError(f"every user can write to the tokens file {path}: chmod o-w it")
    if mode & stat.S_IROTH:
        logger.warning("the tokens file %s can be read by every user of this machine", path)


def _parsed(path: Path, text: str) -> Tokens:
    try:
        listed = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none, a deep nesting
        # Not even as the cause: a parser's message quotes the line.
        raise ConfigError(f"the tokens file {path} is not YAML") from None
    if not isinstance(listed, list):
        raise ConfigError(f"the tokens file {path} must hold a list of entries")
    entries = [_entry(path, number, each) for number, each in enumerate(listed, 1)]
    for key in ("name", "sha256", "certificate"):
        counts = Counter(getattr(entry, key) for entry in entries)
        twice = [number for number, entry in enumerate(entries, 1) if _is_twice(counts, entry, key)]
        if twice:
            raise ConfigError(f"the tokens file {path}: entries {twice} have the same {key}")
    return Tokens(entries)


def _entry(path: Path, number: int, listed: object) -> Entry:
    try:
        return Entry.model_validate(listed)
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'entry'}: {error['msg']}"
            for error in exc.errors(include_input=False, include_url=False)
        )
        raise ConfigError(f"the tokens file {path}, entry {number}: {problems}") from None


def _is_twice(counts: Counter[str | None], entry: Entry, key: str) -> bool:
    value = getattr(entry, key)
    return value is not None and counts[value] > 1
