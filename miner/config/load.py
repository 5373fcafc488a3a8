"""Reads a YAML file and command-line overrides into a checked configuration; says what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from miner.errors import ConfigError

__all__ = ["load_config", "parse_config", "render_config"]

Model = TypeVar("Model", bound=BaseModel)


def load_config(
    model: type[Model], path: Path | None = None, overrides: Iterable[str] = ()
) -> Model:
    """Read ``path`` and lay ``overrides`` over it.

    Args:
        model: The pydantic model of the tree.
        path: A YAML file; None for an empty one.
        overrides: ``"a.b=value"`` each; the value is read as YAML.

    Raises:
        ConfigError: Unreadable file, malformed override, or any key that is unknown, missing or
            out of range; unknown keys name the nearest known one.
    """
    tree = _read(path) if path else {}
    for override in overrides:
        _apply(tree, override)
    return parse_config(model, tree, f"{path}: " if path else "")


def parse_config(model: type[Model], tree: Mapping[str, Any], where: str = "") -> Model:
    """Check a tree of keys and values.

    Args:
        model: The pydantic model of the tree.
        tree: Sections as mappings, or as their own models.
        where: What the message of an error begins with.

    Raises:
        ConfigError: As `load_config`.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as exc:
        raise ConfigError(
            where + "; ".join(_explain(model, error) for error in exc.errors())
        ) from exc


def render_config(config: BaseModel) -> str:
    """The resolved tree as YAML, in the order of the models."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration {path}: {exc.strerror}") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # a date that is none, and UTF-8
        raise ConfigError(f"{path} is not YAML: {exc}") from exc
    if not isinstance(tree or {}, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}")
    return tree or {}


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {override!r} is not of the form key.subkey=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    try:
        tree[leaf] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"override {override!r}: the value is not YAML: {exc}") from exc


def _explain(model: type[BaseModel], error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "(whole configuration)"
    if error["type"] == "extra_forbidden":
        known = _keys_beside(model, error["loc"])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}: {hint}"
    if error["type"] == "missing":
        return f"missing key {key!r}"
    return f"{key}: {error['msg']} (got {error['input']!r})"


def _keys_beside(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc[:-1]:
        annotation = model.model_fields[str(part)].annotation if isinstance(part, str) else None
        section = _section_of(annotation)
        if section is None:
            return []
        model = section
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, also one that may be left out."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
