"""Reads a YAML file and ``key=value`` overrides into a checked configuration."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from trainer.errors import ConfigError

__all__ = ["load_config", "render_config"]

Model = TypeVar("Model", bound=BaseModel)


def load_config(
    model: type[Model], path: Path | None = None, overrides: Iterable[str] = ()
) -> Model:
    """Read ``path`` (None: nothing) and lay ``overrides`` over it.

    Args:
        model: The root of the tree.
        path: A YAML file of keys and sections.
        overrides: ``"section.key=value"`` each; the value is read as YAML.

    Raises:
        ConfigError: The file does not read, an override is malformed, or a key is unknown, missing
            or out of range. All wrong keys are named at once, unknown ones with the nearest known.
    """
    tree = _read(path) if path else {}
    for override in overrides:
        _apply(tree, override)
    try:
        return model.model_validate(tree)
    except ValidationError as exc:
        problems = "; ".join(_explain(model, error) for error in exc.errors())
        raise ConfigError(f"{path}: {problems}" if path else problems) from exc


def render_config(config: BaseModel) -> str:
    """The resolved tree as YAML, in the order of the models."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text("utf-8")) or {}
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration {path}: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    try:
        tree[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(f"override {override!r}: the value is not YAML") from exc


def _explain(model: type[BaseModel], error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}: {_nearest(key, list(_all_keys(model)))}"
    if error["type"] == "missing":
        return f"missing key {key!r}"
    return f"{key}: {error['msg']} (got {error['input']!r})"


def _nearest(key: str, known: list[str]) -> str:
    # A key put into the wrong section is as common as a misspelt one: compare the last parts too.
    leaf = key.rpartition(".")[2]
    moved = [other for other in known if other.rpartition(".")[2] == leaf]
    near = moved or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))  # also a section or None
        section = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if section is not None:
            yield from _all_keys(section, f"{prefix}{name}.")
        else:
            yield prefix + name
