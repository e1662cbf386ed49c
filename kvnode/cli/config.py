"""``kvnode config``: every setting with its value, where that comes from, and what it means.

The commented example file and the reference page are written from the same declarations (`kvnode.config.settings`);
tests keep ``config/kvnode.example.toml`` and ``docs/configuration.md`` equal to what is printed here.
"""

from __future__ import annotations

import json
import os
import tomllib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from kvnode import config
from kvnode.cli.main import fail
from kvnode.errors import ConfigInvalid


def load(file: Path | None, assignments: Sequence[str]) -> config.Config:
    """The node's configuration, ``--set NAME=VALUE`` included. Raises: ConfigInvalid."""
    return config.load(file, overrides=overrides(assignments))


def overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """``("raft.heartbeat_ms=50",)`` → ``{"raft.heartbeat_ms": "50"}``; lists are separated by commas."""
    lists = {setting.name for setting in config.settings() if isinstance(setting.default, tuple)}
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigInvalid(f"--set {assignment}: must be NAME=VALUE, for example raft.heartbeat_ms=50")
        found[name] = value.split(",") if name in lists else value
    return found


@click.command("config")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), envvar="KVNODE_CONFIG")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Override one setting; repeatable.")
@click.option("--explain", is_flag=True, help="Value, source, default, scope, unit and a sentence for each setting.")
@click.option("--example", is_flag=True, help="Print a commented configuration file with all defaults.")
@click.option("--reference", is_flag=True, help="Print the reference page (Markdown).")
@click.option("-o", "--output", type=click.Choice(["plain", "json"]), default="plain", show_default=True)
def show(
    *, file: Path | None, assignments: tuple[str, ...], explain: bool, example: bool, reference: bool, output: str
) -> None:
    """Show settings, their values and where these come from.

    \b
    Examples:
      kvnode config --config config/node1.toml            the effective settings, as TOML
      kvnode config --explain --config config/node1.toml  with source, default, scope, unit and meaning
      kvnode config --example > node.toml                 a commented file to start from
    """
    if example:
        click.echo(example_toml(), nl=False)
        return
    if reference:
        click.echo(reference_markdown(), nl=False)
        return
    try:
        loaded = load(file, assignments)
    except ConfigInvalid as error:
        fail(error)
    rows = list(_explained(loaded, file, assignments))
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
    elif explain:
        click.echo("\n".join(_explanation(row) for row in rows))
    else:
        click.echo(_effective_toml(rows), nl=False)


def _explained(loaded: config.Config, file: Path | None, assignments: Sequence[str]) -> Iterator[dict[str, Any]]:
    in_file = tomllib.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    flags = overrides(assignments)
    for setting in config.settings():
        section, field = setting.name.split(".")
        if setting.name in flags:
            source = "flag --set"
        elif setting.environment in os.environ:
            source = f"environment {setting.environment}"
        elif field in in_file.get(section, {}):
            source = f"file {file}"
        else:
            source = "default"
        yield {
            "name": setting.name,
            "value": setting.value(loaded),
            "source": source,
            "default": setting.default,
            "scope": setting.scope,
            "unit": setting.unit,
            "environment": setting.environment,
            "sentence": setting.sentence,
        }


def _explanation(row: dict[str, Any]) -> str:
    unit = f" {row['unit']}" if row["unit"] else ""
    return (
        f"{row['name']} = {_toml_value(row['value'])}{unit}\n"
        f"    from {row['source']}; default {_toml_value(row['default'])}; scope {row['scope']}\n"
        f"    {row['sentence']}"
    )


def _effective_toml(rows: Sequence[dict[str, Any]]) -> str:
    lines: list[str] = []
    section = ""
    for row in rows:
        name, field = row["name"].split(".")
        if name != section:
            lines += ["", f"[{name}]"] if lines else [f"[{name}]"]
            section = name
        lines.append(f"{field} = {_toml_value(row['value'])}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string


def example_toml() -> str:
    """A configuration file with every setting commented out at its default."""
    lines = [
        "# Every setting of a kvnode node, at its default. Uncomment what you change.",
        "# `kvnode serve --set NAME=VALUE` and the environment (KVNODE_RAFT__HEARTBEAT_MS) win over this file.",
        "# Scope `cluster`: must be equal on all members; to change one, stop all nodes.",
    ]
    for section in msgspec.structs.fields(config.Config):
        lines += ["", f"# {section.type.__doc__}", f"[{section.name}]"]
        for setting in config.settings():
            if setting.name.startswith(f"{section.name}."):
                details = [setting.scope, *([setting.unit] if setting.unit else []), *_bounds(setting)]
                field = setting.name.split(".")[1]
                lines.append(f"# {setting.sentence} ({', '.join(details)})")
                lines.append(f"# {field} = {_toml_value(setting.default)}")
    return "\n".join(lines) + "\n"


def reference_markdown() -> str:
    """The reference page: one table a section."""
    lines = [
        "# Configuration",
        "",
        "Written by `kvnode config --reference` from the declarations in `kvnode/config/`; do not edit by hand.",
        "",
        "A value is taken from `kvnode serve --set NAME=VALUE`, else from the environment, else from the TOML file;",
        "else the default applies. The environment name of `raft.heartbeat_ms` is `KVNODE_RAFT__HEARTBEAT_MS`; lists",
        "are separated by commas there. `kvnode config --explain --config FILE` shows each value with its source.",
        "",
        "Scope **cluster** means that all members must agree: peers compare these settings when they connect, and a",
        "refusal names the one that differs. To change one, stop all nodes. Scope **node** is this node's own affair.",
    ]
    for section in msgspec.structs.fields(config.Config):
        lines += ["", f"## [{section.name}]", "", str(section.type.__doc__), ""]
        lines += ["| setting | default | unit | bounds | scope | meaning |", "|---|---|---|---|---|---|"]
        for setting in config.settings():
            if setting.name.startswith(f"{section.name}."):
                lines.append(
                    f"| `{setting.name}` | `{_toml_value(setting.default)}` | {setting.unit} | "
                    f"{', '.join(_bounds(setting))} | {setting.scope} | {setting.sentence} |"
                )
    return "\n".join(lines) + "\n"


def _bounds(setting: config.Setting) -> list[str]:
    meta = _meta(setting)
    found = []
    if typing.get_origin(setting.type) is typing.Literal:
        found.append(" or ".join(f"`{value}`" for value in typing.get_args(setting.type)))
    if meta.ge is not None:
        found.append(f"≥ {_toml_value(meta.ge)}")
    if meta.le is not None:
        found.append(f"≤ {_toml_value(meta.le)}")
    if meta.max_length is not None:
        found.append(f"at most {meta.max_length} characters")
    return found


def _meta(setting: config.Setting) -> msgspec.Meta:
    section, field = setting.name.split(".")
    sections: dict[str, Any] = {entry.name: entry.type for entry in msgspec.structs.fields(config.Config)}
    annotated = next(entry.type for entry in msgspec.structs.fields(sections[section]) if entry.name == field)
    meta: msgspec.Meta = annotated.__metadata__[0]
    return meta
