"""Installing and containers: checked as far as it goes without an engine; `docs/testing.md` says what was not run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvnode import config
from kvnode.version import __version__

ROOT = Path(__file__).parent.parent
INSTRUCTIONS = frozenset(
    {
        "FROM",
        "RUN",
        "CMD",
        "COPY",
        "ENV",
        "USER",
        "WORKDIR",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
    }
)


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined]


def test_the_dockerfile_is_made_of_instructions():
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert [arguments for name, arguments in found if name == "FROM"] == [
        "python:3.13-slim AS build",
        "python:3.13-slim",
    ]
    last_stage = found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]
    settings = dict(last_stage)
    assert settings["USER"] == "10001"
    assert settings["STOPSIGNAL"] == "SIGTERM"
    assert settings["VOLUME"] == "/data"
    assert settings["ENTRYPOINT"] == '["kvnode"]'
    assert settings["HEALTHCHECK"].endswith('CMD ["kvnode", "health"]')


def test_the_dockerfile_copies_only_what_the_context_holds():
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    for name, arguments in instructions():
        if name == "COPY" and "--from" not in arguments:
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source.removeprefix("./") in allowed, f"{source} is not let through by .dockerignore"


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def test_compose_runs_three_nodes_with_settings_that_load():
    services = compose()["services"]
    nodes = {name: service for name, service in services.items() if name != "secret"}
    assert list(nodes) == ["n1", "n2", "n3"]
    known = {setting.environment for setting in config.settings()}
    loaded = []
    for name, service in nodes.items():
        environment = {key: str(value) for key, value in service["environment"].items()}
        assert set(environment) <= known, name
        loaded.append(config.load(environment=environment))
        assert service["healthcheck"]["test"] == ["CMD", "kvnode", "health"]
        assert service["stop_grace_period"] == "15s"
        assert service["hostname"] == name
        assert service["depends_on"]["secret"]["condition"] == "service_completed_successfully"
        assert any(volume.endswith(":/data") for volume in service["volumes"])
    assert [one.node.id for one in loaded] == [1, 2, 3]
    assert len({tuple(one.cluster.members) for one in loaded}) == 1
    for one in loaded:
        assert one.initial_members()[one.node.id] == one.peer.advertise
        assert one.cluster_scope() == loaded[0].cluster_scope()
    ports = [port for service in nodes.values() for port in service["ports"]]
    assert ports == [f"127.0.0.1:740{number}:7401" for number in (1, 2, 3)]


def test_compose_makes_the_secret_once(tmp_path):
    secret = compose()["services"]["secret"]
    script = secret["command"][0].replace("/secret/", f"{tmp_path}/").replace("chown 10001:10001", "true")
    for _ in range(2):
        subprocess.run(["/bin/sh", "-c", script], check=True)
    made = tmp_path / "secret"
    assert len(made.read_bytes()) == 32
    assert made.stat().st_mode & 0o777 == 0o600
    before = made.read_bytes()
    subprocess.run(["/bin/sh", "-c", script], check=True)
    assert made.read_bytes() == before
    assert secret["volumes"] == ["secret:/secret"]


def test_the_constraints_pin_every_dependency_and_hold_no_address():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9A-Za-z.]+)(\s*;.*)?", line)
        assert match is not None, line
        pinned[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = [re.match(r"[A-Za-z0-9_-]+", requirement)[0].lower() for requirement in wanted]  # type: ignore[index]
    assert [name for name in names if name not in pinned] == []


def test_make_verbs():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert verbs == {
        "help",
        "cluster",
        "test",
        "system",
        "etcd",
        "check",
        "lint",
        "type",
        "fmt",
        "golden",
        "sim",
        "chaos",
        "bench",
        "bench-large",
        "clean",
    }
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {verb} " in listed for verb in verbs)


def test_make_says_which_python_is_needed(tmp_path):
    old = tmp_path / "python-of-old"
    old.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c 'import sys; sys.exit(\"needs Python 3.11\")'\n")
    old.chmod(0o755)
    command = ["make", f"PYTHON={old}", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/.ready"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "Python 3.11" in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_steps_of_the_dockerfile_work_in_a_clean_environment(tmp_path):
    """Build the wheel, install it with the pinned dependencies, run it: without an engine, in a fresh venv."""
    venv = tmp_path / "venv"
    python = str(venv / "bin" / "python")
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}

    def run(*command: str, timeout: int = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout
        )

    assert run(sys.executable, "-m", "venv", "--without-pip", str(venv)).returncode == 0
    pip = (sys.executable, "-m", "pip", "--python", python)
    try:
        built = run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path / "dist"), ".")
    except subprocess.TimeoutExpired:
        pytest.skip("no package index answers: the wheel cannot be built in isolation")
    if built.returncode != 0 and re.search(r"No matching distribution|connection|Temporary failure", built.stderr):
        pytest.skip(f"no package index answers: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    installed = run(
        *pip, "install", "--quiet", "--no-compile", "--constraint", "constraints.txt", str(wheel), timeout=100
    )
    assert installed.returncode == 0, installed.stderr
    version = run(str(venv / "bin" / "kvnode"), "--version")
    assert version.stdout == f"kvnode, version {__version__}\n"
    where = run(python, "-P", "-c", "import kvnode; print(kvnode.__file__)")
    assert str(venv) in where.stdout
    assert (venv / "bin" / "kvnode").exists()
