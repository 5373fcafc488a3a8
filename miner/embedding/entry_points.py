"""Finds the user's callables by name, and fingerprints the text that defines them.

It knows nothing of what the callables do.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from miner.embedding.config import EncoderConfig
from miner.errors import EncoderError

__all__ = ["load_entry_point", "preprocessing_fingerprint"]


def load_entry_point(name: str) -> Callable[..., Any]:
    """Import ``package.module:callable``.

    Raises:
        EncoderError: The name is malformed, the module does not import, or it has no such callable.
    """
    module_name, separator, attribute = name.partition(":")
    if not (separator and module_name and attribute):
        raise EncoderError(f"entry point {name!r} is not of the form package.module:callable")
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:
        raise EncoderError(
            f"entry point {name!r}: module {module_name!r} does not import "
            f"({type(exc).__name__}: {exc}); its folder must be on PYTHONPATH of every worker"
        ) from exc
    if not hasattr(module, attribute):
        raise EncoderError(f"entry point {name!r}: module {module_name!r} has no {attribute!r}")
    found = getattr(module, attribute)
    if not callable(found):
        raise EncoderError(
            f"entry point {name!r}: {attribute!r} is of type {type(found).__name__}, which cannot "
            "be called"
        )
    return found  # type: ignore[no-any-return]


def preprocessing_fingerprint(config: EncoderConfig, payload_columns: Sequence[str]) -> str:
    """Digest of all that turns a sample and given weights into an embedding.

    Covers both entry points and their arguments, the payload columns, and the text of the modules
    that are named and of those that define the callables. What these modules import is not covered.

    Returns:
        sha256 in hex; equal on all machines that hold the same text.

    Raises:
        EncoderError: An entry point does not load, or its module has no file.
    """
    digest = hashlib.sha256()
    described = [config.encoder, config.preprocess, config.encoder_args, list(payload_columns)]
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name in (config.encoder, config.preprocess):
        found = load_entry_point(name)
        named = name.partition(":")[0]
        for module_name in dict.fromkeys((named, getattr(found, "__module__", None) or named)):
            file = getattr(sys.modules.get(module_name), "__file__", None)
            if file is None:
                raise EncoderError(
                    f"entry point {name!r}: module {module_name!r} has no file, so its text cannot "
                    "be fingerprinted; define the callable in a module of its own"
                )
            digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()
