"""The command line as a whole: it starts fast, explains itself, and refuses to run without its assertions."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from kvnode import errors
from kvnode.cli.main import COMMANDS, EXIT_CODES, cli, exit_code
from kvnode.version import __version__


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KVNODE_")}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_version_imports_nothing_slow():
    result = run_python("-X", "importtime", "-m", "kvnode", "--version")
    assert result.stdout == f"kvnode, version {__version__}\n"
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {
        "aiohttp",
        "structlog",
        "msgspec",
        "rich",
        "asyncio",
        "lmdb",
        "http.client",
        "prometheus_client",
    }


@pytest.mark.slow
def test_a_one_shot_command_imports_neither_aiohttp_nor_structlog():
    result = run_python("-X", "importtime", "-m", "kvnode", "get", "k", "--endpoint", "127.0.0.1:9", "--timeout", "1s")
    assert result.returncode == 3
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "http.client" in imported
    assert not imported & {"aiohttp", "structlog", "msgspec", "rich", "asyncio", "lmdb"}


@pytest.mark.slow
def test_importing_the_package_loads_nothing():
    result = run_python("-c", "import sys, kvnode; print(sorted(m for m in sys.modules if m.startswith('kvnode')))")
    assert result.stdout == "['kvnode', 'kvnode.version']\n"


@pytest.mark.slow
def test_it_refuses_to_run_without_assertions():
    result = run_python("-O", "-m", "kvnode", "--version")
    assert result.returncode == 5
    assert "python -O" in result.stderr


def test_help_is_told_once():
    """The static list that keeps `--help` fast says what each command says itself."""
    for name, (module, text) in COMMANDS.items():
        importlib.import_module(module)
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None, name
        assert command.name == name
        assert (command.help or "").splitlines()[0] == text


def test_help_names_commands_and_exit_codes():
    text = CliRunner().invoke(cli, ["--help"]).stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert all(f"\n    {code}  {meaning}\n" in text for code, meaning in EXIT_CODES.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.stdout or name in {"health", "wal"}


def test_exit_codes_come_from_the_error_families():
    for cls in errors.by_code().values():
        code = exit_code(cls("x"), write=True)
        if issubclass(cls, errors.Rejected):
            assert code == 1
        elif issubclass(cls, errors.TryAgain):
            assert code == 3
        elif issubclass(cls, errors.Unknown):
            assert (code, exit_code(cls("x"), write=False)) == (4, 3)
        else:
            assert code == 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str):
    result = CliRunner().invoke(cli, ["completion", shell])
    assert "_KVNODE_COMPLETE" in result.stdout


def test_an_unknown_command_is_a_usage_error():
    result = CliRunner().invoke(cli, ["frobnicate"])
    assert result.exit_code == 2


def test_serve_explains_a_bad_configuration(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text("[raft]\nheartbeat = 5\n")
    for arguments, words in [
        (["--config", str(file)], "did you mean raft.heartbeat_ms?"),
        (["--config", str(tmp_path / "missing.toml")], "does not exist"),
        (["--set", "raft.heartbeat_ms"], "must be NAME=VALUE"),
        (["--set", "raft.heartbeat_ms=500"], "at most a third"),
    ]:
        result = CliRunner().invoke(cli, ["serve", *arguments])
        assert result.exit_code == 5
        assert words in result.stderr
        assert "Traceback" not in result.stderr
