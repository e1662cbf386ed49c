"""Nothing a user meets is undocumented: settings, events, metrics, commands, options, exit codes, error codes.

Tables are written from the code: ``KVNODE_DOCS_REWRITE=1`` makes this file rewrite them instead of comparing.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest

from kvnode import config, errors
from kvnode.cli.main import COMMANDS, EXIT_CODES, cli
from kvnode.node.own_events import KINDS
from kvnode.observe import etcd_metrics
from kvnode.observe.log import EVENTS
from kvnode.observe.metrics import DECLARED, MetricDeclaration

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LOG_METHODS = frozenset({"debug", "info", "warning", "error", "exception"})


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def metrics_table(declared: Iterable[MetricDeclaration]) -> str:
    rows = [(f"`{m.name}`", m.kind, f"`{m.label}`" if m.label else "", m.sentence) for m in declared]
    return table(("metric", "kind", "label", "meaning"), rows)


GENERATED = {
    "kinds": lambda: table(("kind", "meaning"), [(f"`{kind}`", KINDS[kind]) for kind in KINDS]),
    "exit codes": lambda: table(("code", "meaning"), [(str(code), meaning) for code, meaning in EXIT_CODES.items()]),
    "events": lambda: table(("event", "meaning"), [(f"`{name}`", EVENTS[name]) for name in sorted(EVENTS)]),
    "metrics": lambda: metrics_table(DECLARED),
    "etcd metrics": lambda: metrics_table(etcd_metrics.DECLARED.values()),
}


@pytest.mark.parametrize("name", GENERATED)
def test_the_generated_tables_are_current(name: str):
    page = DOCS / ("available.md" if name == "kinds" else "operations.md")
    text = page.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    current = block.sub(lambda found: f"{found[1]}\n{GENERATED[name]()}\n\n{found[2]}", text)
    assert block.search(text), f"{page.name} has no block for {name}"
    if os.environ.get("KVNODE_DOCS_REWRITE"):
        page.write_text(current, encoding="utf-8")
        return
    assert text == current, "run: make golden"


def test_every_setting_is_documented():
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert [setting.name for setting in config.settings() if f"| `{setting.name}` |" not in page] == []


def test_every_setting_has_a_sentence_and_a_scope():
    for setting in config.settings():
        assert setting.sentence.endswith("."), setting.name
        assert setting.scope in {"node", "cluster"}, setting.name
        assert setting.unit == "ms" or not setting.name.endswith("_ms"), setting.name


def logged_events() -> Iterator[tuple[str, str]]:
    """(place, event) of every log call whose event stands there as text."""
    for path in sorted((ROOT / "kvnode").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr=method), args=[ast.Constant(value=str(event)), *_]) if (
                    method in LOG_METHODS and re.fullmatch(r"[a-z_]+\.[a-z_]+", event)
                ):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", event


def test_every_logged_event_is_declared():
    assert [(place, event) for place, event in logged_events() if event not in EVENTS] == []


def test_every_declared_event_is_logged_somewhere():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "kvnode").rglob("*.py") if path.name != "log.py"]
    own = {"log.dropped", "library.logged"}  # by the logging itself
    assert [event for event in EVENTS if event not in own and not any(f'"{event}"' in text for text in sources)] == []


def test_every_kind_of_the_clusters_own_events_is_declared():
    sources = [ROOT / "kvnode" / "plane.py", *sorted((ROOT / "kvnode" / "node").glob("*.py"))]
    recorded = re.compile(r'(?:\breturn|\.record\()\s*"([a-z]+\.[a-z_]+)",')
    kinds = [kind for path in sources for kind in recorded.findall(path.read_text(encoding="utf-8"))]
    assert len(kinds) > 15
    assert [kind for kind in kinds if kind not in KINDS] == []


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None, name
        yield name, command


def test_every_command_and_option_is_documented():
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    general = page.partition("\n## ")[0]
    for name, command in commands():
        section = re.search(rf"^## kvnode {name}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None, f"docs/cli.md has no section for kvnode {name}"
        if isinstance(command, click.Group):
            missing = [sub for sub in command.commands if f"kvnode {name} {sub}" not in section[1]]
            assert missing == [], name
        options = [max(option.opts, key=len) for option in command.params if isinstance(option, click.Option)]
        assert [option for option in options if option not in section[1] + general] == [], name


def test_every_error_code_is_documented():
    page = DOCS / "http-api.md"
    if not page.exists():
        pytest.skip("docs/http-api.md is not written yet")
    text = page.read_text(encoding="utf-8")
    local = {cls.code for cls in errors.by_code().values() if issubclass(cls, errors.Fatal)}  # never leave the node
    families = {"rejected", "try_again", "unknown"}  # base classes; the answer carries a code below them
    assert [code for code in errors.by_code() if code not in local | families and f"`{code}`" not in text] == []


def test_links_between_pages_lead_somewhere():
    broken = [
        f"{page.relative_to(ROOT)} → {target}"
        for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"))
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []
