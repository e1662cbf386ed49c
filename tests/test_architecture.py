"""The two rules of form that deserve a machine check, as data: who may import whom, and what the pure packages avoid.

Also: no file named after nothing in particular, no silenced type error without its code, no bare ``except``, and
no address of a package registry or of somebody's machine in the repository.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "kvnode"

ROWS: tuple[frozenset[str], ...] = (
    frozenset({"ids", "kv", "clocks", "config", "errors", "observe", "tls", "version", "checkout", "perturb"}),
    frozenset({"raft", "machine", "gossip", "check", "wire"}),
    frozenset({"recipes"}),
    frozenset({"node", "storage", "transport", "api", "client"}),
    frozenset({"server", "open_storage", "join", "plane", "restore"}),
    frozenset({"embedded", "process"}),
    frozenset({"sim", "bench", "doctor"}),
    frozenset({"cli"}),
    frozenset({"__init__", "__main__"}),
)
"""A file imports from rows below its own; in rows 1 to 3 never from a neighbour. The last row is the facade."""

NEIGHBOURS_MEET = frozenset({0, 4, 5, 6, 7, 8})
EXCEPTIONS = {("wire", "raft"), ("wire", "machine"), ("wire", "gossip")}

PURE = frozenset({"raft", "machine", "gossip", "check", "wire", "kv", "clocks"})
PURE_FILES = frozenset(
    f"kvnode/doctor/{name}.py"
    for name in (
        "advice",
        "cluster_facts",
        "cluster_rules",
        "contents_rules",
        "directory_facts",
        "directory_rules",
        "findings",
    )
)
PURE_EXCEPT = frozenset({"kvnode/clocks/system.py"})
IMPURE_MODULES = frozenset(
    [
        "aiofiles",
        "aiohttp",
        "asyncio",
        "concurrent",
        "fcntl",
        "glob",
        "http",
        "io",
        "lmdb",
        "logging",
        "mmap",
        "multiprocessing",
        "os",
        "pathlib",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "ssl",
        "structlog",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "urllib",
        "uvloop",
    ]
)
IMPURE_OWN = frozenset({"kvnode.observe", "kvnode.clocks.system", "kvnode.tls"})
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval"})
IMPURE_ATTRIBUTES = frozenset({("datetime", "now"), ("datetime", "utcnow"), ("date", "today"), ("uuid", "uuid4")})

NAMES_THAT_SAY_NOTHING = frozenset({"utils", "util", "helpers", "helper", "common", "misc", "base", "tools"})


def sources() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def row_of(package: str) -> int:
    rows = [number for number, row in enumerate(ROWS) if package in row]
    assert rows, f"package kvnode.{package} stands in no row of the import rule"
    return rows[0]


def imported_modules(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, wherever the statement stands; ``from kvnode import x`` counts as kvnode.x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                here = ("kvnode", *path.relative_to(SOURCE).parent.parts)
                module = ".".join([*here[: len(here) - node.level + 1], *([module] if module else [])])
            if module == "kvnode" or node.level:
                yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno
                yield from (
                    (f"{module}.{alias.name}", node.lineno) for alias in node.names if module == "kvnode.clocks"
                )


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def broken_imports(path: Path, tree: ast.AST) -> Iterator[str]:
    own = package_of(path)
    own_row = row_of(own)
    for module, line in imported_modules(tree, path):
        parts = module.split(".")
        if parts[0] != "kvnode" or len(parts) == 1:
            continue
        other = parts[1]
        if other == own or (own, other) in EXCEPTIONS:
            continue
        other_row = row_of(other) if any(other in row for row in ROWS) else len(ROWS) - 1  # a name of the facade
        if other_row > own_row or (other_row == own_row and own_row not in NEIGHBOURS_MEET):
            yield f"{path.relative_to(ROOT)}:{line}: {own} (row {own_row}) imports {module} (row {other_row})"


def impurities(path: Path, tree: ast.AST) -> Iterator[str]:
    where = path.relative_to(ROOT).as_posix()
    if (package_of(path) not in PURE and where not in PURE_FILES) or where in PURE_EXCEPT:
        return
    for module, line in imported_modules(tree, path):
        if module.split(".")[0] in IMPURE_MODULES or any(f"{module}.".startswith(f"{own}.") for own in IMPURE_OWN):
            yield f"{where}:{line}: imports {module}"
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_CALLS:
                yield f"{where}:{node.lineno}: calls {name}()"
            case ast.Attribute(value=ast.Name(id="random"), attr=name) if name != "Random":
                yield f"{where}:{node.lineno}: uses random.{name}; chance arrives as a random.Random"
            case ast.ImportFrom(module="random", names=names) if [n for n in names if n.name != "Random"]:
                yield f"{where}:{node.lineno}: imports from random more than Random"
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in IMPURE_ATTRIBUTES:
                yield f"{where}:{node.lineno}: reads {owner}.{name}"


def test_files_import_only_from_rows_below():
    assert [fault for path in sources() for fault in broken_imports(path, parsed(path))] == []


def test_the_pure_packages_are_pure():
    assert [fault for path in sources() for fault in impurities(path, parsed(path))] == []


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("kvnode/raft/x.py", "from kvnode.machine import mvcc"),
        ("kvnode/storage/x.py", "def f():\n    import kvnode.node.node"),
        ("kvnode/kv/x.py", "from kvnode.raft.messages import Entry"),
        ("kvnode/raft/x.py", "from kvnode import server"),
        ("kvnode/api/http/x.py", "from ...node import node"),
        ("kvnode/raft/x.py", "from kvnode import Client"),
    ],
)
def test_the_import_rule_catches(where: str, text: str):
    assert list(broken_imports(ROOT / where, ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "import asyncio",
        "import random\nrandom.random()",
        "from random import choice",
        "def f():\n    from time import monotonic",
        "open('x')",
        "from kvnode.clocks.system import SystemClock",
        "from kvnode.clocks import system",
        "from kvnode.observe.log import get_logger",
    ],
)
def test_the_purity_rule_catches(text: str):
    assert list(impurities(ROOT / "kvnode/raft/x.py", ast.parse(text)))


def test_the_purity_rule_allows_what_the_cores_need():
    text = "import random\nimport zlib\nfrom random import Random\n\ndef f(rng: random.Random) -> None: ..."
    assert list(impurities(ROOT / "kvnode/raft/x.py", ast.parse(text))) == []


def test_file_names_say_what_is_inside():
    python = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert [str(path) for path in python if path.stem.removeprefix("test_") in NAMES_THAT_SAY_NOTHING] == []


def test_no_type_error_is_silenced_without_its_code():
    silenced = re.compile(r"#\s*type:\s*ignore(?!\[[a-z-]+(,\s*[a-z-]+)*\])")
    assert [str(path) for path in sources() if silenced.search(path.read_text(encoding="utf-8"))] == []


def test_no_bare_except():
    handlers = (
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    )
    assert list(handlers) == []


# -- what no tracked file may contain; the strings are put together here so that this file passes its own test --------

REGISTRIES = tuple(
    a + b
    for a, b in [
        ("py", "pi.org"),
        ("pypi", ".python.org"),
        ("python", "hosted.org"),
        ("npm", "js.org"),
        ("yarn", "pkg.com"),
        ("jsdel", "ivr.net"),
        ("unp", "kg.com"),
        ("cra", "tes.io"),
        ("ruby", "gems.org"),
        ("proxy.go", "lang.org"),
        ("docker", ".io"),
        ("ghc", "r.io"),
        ("qua", "y.io"),
        ("--index", "-url"),
        ("--extra-", "index"),
        ("--find", "-links"),
    ]
)
MACHINES = tuple(
    a + b for a, b in [("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/Use", "rs/"), ("/opt/", "wheels")]
)


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_registry_and_no_machine_is_named():
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked_files()
        for text in [path.read_text(encoding="utf-8", errors="replace")]
        for word in (*REGISTRIES, *MACHINES)
        if word in text
    ]
    assert found == []


DOCUMENTATION_HOSTS = frozenset(
    {"www.apache.org", "raft.github.io", "spec.openapis.org", "json-schema.org", "spdx.org"}
)


def test_links_lead_to_documentation_only():
    """Says what is allowed, so that no address of a registry, a mirror or a content network slips in unnoticed."""
    url = re.compile(r"https?://([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})")
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked_files()
        for host in url.findall(path.read_text(encoding="utf-8", errors="replace"))
        if host not in DOCUMENTATION_HOSTS and not host.endswith(".example")
    ]
    assert found == []
