"""Loading: file, environment and flags, merged by precedence; an unknown name is refused, and the nearest one named."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kvnode.config.config import Config, Setting, settings
from kvnode.errors import ConfigInvalid


def load(
    path: str | Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """File, environment and overrides (dotted names), merged by precedence and checked.

    Raises: ConfigInvalid naming the key, and the nearest known one for a misspelt key.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigInvalid(f"configuration file {path} does not exist") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigInvalid(f"configuration file {path}: {error}") from error
    declared = {setting.name: setting for setting in settings()}
    _refuse_unknown(data, declared, str(path))
    environment = os.environ if environment is None else environment
    _refuse_unknown_environment(environment, {setting.environment for setting in declared.values()})
    for setting in declared.values():
        text = environment.get(setting.environment)
        if text is not None:
            _set(data, setting.name, text.split(",") if _is_list(setting) else text)
    for name, value in (overrides or {}).items():
        if name not in declared:
            raise ConfigInvalid(f"unknown setting {name}{_did_you_mean(name, declared)}")
        _set(data, name, value)
    try:
        return msgspec.convert(data, Config, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigInvalid(f"configuration {path or ''}: {error}") from error


def _is_list(setting: Setting) -> bool:
    return isinstance(setting.default, tuple)


def _set(data: dict[str, Any], name: str, value: Any) -> None:
    section, field = name.split(".")
    data.setdefault(section, {})[field] = value


def _refuse_unknown(data: dict[str, Any], declared: Mapping[str, Setting], origin: str) -> None:
    sections = {name.split(".")[0] for name in declared}
    for section, fields in data.items():
        if section not in sections or not isinstance(fields, dict):
            raise ConfigInvalid(f"{origin}: unknown section [{section}]{_did_you_mean(section, sections)}")
        for field in fields:
            if f"{section}.{field}" not in declared:
                hint = _did_you_mean(f"{section}.{field}", declared)
                raise ConfigInvalid(f"{origin}: unknown setting {section}.{field}{hint}")


def _refuse_unknown_environment(environment: Mapping[str, str], known: set[str]) -> None:
    # Two underscores make a setting. Names with single ones are left alone: orchestrators invent such
    # (a service called kvnode-client sets KVNODE_CLIENT_PORT in every container).
    for name in environment:
        if name.startswith("KVNODE_") and "__" in name and name not in known:
            raise ConfigInvalid(f"environment: unknown setting {name}{_did_you_mean(name, known)}")


def _did_you_mean(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
