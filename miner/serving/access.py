"""Who a client is and whether it may do what it asks: by its token, its certificate, or anyhow.

It knows no rpc: :mod:`miner.serving.gate` asks it before each one. Where tokens are configured a
client shows a token, or a certificate that the tokens file names; where only client certificates
are, every certificate of the CA may do everything; where neither is, everybody may.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from miner.errors import ForbiddenError, UnauthenticatedError
from miner.serving.config import ServingConfig
from miner.serving.roles import NEEDED_ROLES, Role, includes
from miner.serving.tokens import Tokens, read_tokens
from miner.serving.watched import Watched

__all__ = ["Access", "Caller", "client_of"]

_CERTIFICATE_NAMES = ("x509_common_name", "x509_subject_alternative_name")
_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: As the tokens file or the certificate says; empty where nobody has to say.
        role: What it may do.
    """

    name: str
    role: Role


def client_of(context: Any) -> str:
    """Who the client is: its token's or certificate's name, else the address of its machine."""
    caller = _caller.get()
    if caller is not None and caller.name:
        return caller.name
    peer: str = context.peer()
    return peer.rpartition(":")[0] or peer


class Access:
    """The rule of one server.

    Args:
        config: Which credentials are asked for. The tokens file is read, and again when it changes.

    Raises:
        ConfigError: There is no good tokens file to begin with.
    """

    def __init__(self, config: ServingConfig) -> None:
        path = config.tokens_file
        self._tokens: Watched[Tokens] | None = None
        if path is not None:
            self._tokens = Watched([path], lambda: read_tokens(path))

    def admit(self, rpc: str, context: Any, *, is_served: bool = True) -> None:
        """Let the client of ``context`` make this request; `client_of` knows it from here on.

        Args:
            rpc: Full name, ``/package.Service/Method``.
            context: Of the request, on whose task this is called.
            is_served: False lets everybody pass who shows credentials, to be told that it is not.

        Raises:
            UnauthenticatedError: It shows no credentials, or wrong ones.
            ForbiddenError: Its role is too low, or no role may do this.
        """
        caller = self._caller_of(context)
        needed = NEEDED_ROLES.get(rpc)
        if is_served and needed is None:
            raise ForbiddenError(f"no role may call {rpc}: it is missing in the table of roles")
        if is_served and needed is not None and not includes(caller.role, needed):
            raise ForbiddenError(
                f"{rpc} needs the role {needed!r}, and {caller.name!r} has {caller.role!r}: ask "
                "the miner's operator for another token"
            )
        _caller.set(caller)

    def _caller_of(self, context: Any) -> Caller:
        names = _certificate_names(context)
        if self._tokens is not None:
            return _known(self._tokens.value, _authorizations(context), names)
        return Caller(names[0] if names else "", "admin")


def _known(tokens: Tokens, authorizations: Sequence[str], names: Sequence[str]) -> Caller:
    """A token counts alone: a wrong one is refused whatever certificate comes with it."""
    if authorizations:
        scheme, _, token = authorizations[0].partition(" ")
        entry = tokens.by_token(token.strip())
        if len(authorizations) > 1 or scheme.lower() != "bearer" or entry is None:
            raise UnauthenticatedError(
                "the token is not one that this miner knows: it may have been replaced; ask the "
                "miner's operator for a new one"
            )
        return Caller(entry.name, entry.role)
    entry = tokens.by_certificate(names)
    if entry is None:
        shown = f", and the certificate of {names[0]!r} has no role here" if names else ""
        raise UnauthenticatedError(
            f"no token was given{shown}: send it as metadata `authorization: Bearer <token>` "
            "(trainers: token_file, or COALFACE_TOKEN)"
        )
    return Caller(entry.name, entry.role)


def _authorizations(context: Any) -> list[str]:
    metadata = context.invocation_metadata() or ()
    return [str(value) for key, value in metadata if key == "authorization"]


def _certificate_names(context: Any) -> list[str]:
    shown = context.auth_context()
    names = (name for key in _CERTIFICATE_NAMES for name in shown.get(key, ()))
    return [name.decode("utf-8", "replace") for name in names if name]
