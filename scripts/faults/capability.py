"""Capabilities: what this machine lets a chaos run do, found out by doing it once. What is missing has a reason."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import sleep

from scripts.faults import hub, throttle
from scripts.faults.command import run
from scripts.faults.images import Image
from scripts.faults.sandbox import Level
from scripts.faults.syscalls import Injector, under
from scripts.faults.undo import Undo

Reasons = dict[str, str]
"""Capability → why it is missing; "" if it is there."""

WORDS = {
    "processes": "kill -9, SIGSTOP, SIGTERM, address space limit",
    "proxies": "TCP proxies: delay, silence, loss, repetition, corruption, truncation, half-open, resets",
    "strace": "kill, EIO, ENOSPC and delay at the N-th system call",
    "hosts": "network namespaces: one-way, full and partial partitions",
    "loss": "random packet loss (nftables)",
    "slow link": "a narrow pipe (tc tbf)",
    "resets": "established connections reset (ss -K)",
    "images": "ext4 images: power loss, hung disk, full disk",
    "throttle": "slow disk by control group",
}


def probe(level: Level, home: Path) -> Reasons:
    """Try everything once. `home`: a directory for the time of the trial."""
    reasons: Reasons = {"processes": "", "proxies": "" if Path("/proc/net/tcp").exists() else "no /proc/net/tcp"}
    reasons["strace"] = why_no_strace(home)
    no_hosts = "" if level != "none" else "no network namespace can be made (unshare --net; root, or user namespaces)"
    reasons["hosts"] = no_hosts or _tried(_try_hosts, home)
    for name, tool, trial in (
        ("loss", "nft", _try_loss),
        ("slow link", "tc", _try_slow_link),
        ("resets", "ss", _try_resets),
    ):
        missing = "" if shutil.which(tool) else f"{tool} is not installed"
        reasons[name] = reasons["hosts"] or missing or _tried(trial, home)
    reasons["images"] = "" if level == "root" else "mounting a loop device needs root"
    reasons["images"] = reasons["images"] or _tried(_try_images, home)
    reasons["throttle"] = reasons["images"] or throttle.reason_against()
    return reasons


def table(reasons: Reasons) -> str:
    lines = []
    for name, words in WORDS.items():
        reason = reasons[name]
        lines.append(f"  {name:<10} {'skipped: ' + reason if reason else 'available'}   ({words})")
    return "\n".join(lines)


def why_no_strace(home: Path) -> str:
    """ "" if strace can start and be attached here."""
    return _tried(_try_strace, home)


def _tried(trial: Callable[[Path, Undo], str], home: Path) -> str:
    """ "" if the trial went well, else what it met. Whatever it made is undone."""
    undo = Undo()
    with tempfile.TemporaryDirectory(dir=home) as directory:
        try:
            return trial(Path(directory), undo)
        except (OSError, subprocess.SubprocessError) as error:
            return " ".join(str(error).split())[:200]
        finally:
            undo.all()


def _try_strace(home: Path, undo: Undo) -> str:
    del home
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(
        [*under(["fsync:error=EIO:when=1"]), "true"], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        return f"strace does not work here: {done.stderr.strip()}"
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        Injector(undo).attach(sleeper.pid, ["fsync:error=EIO:when=1"])
        for _ in range(200):
            status = Path(f"/proc/{sleeper.pid}/status").read_text(encoding="ascii")
            if "TracerPid:\t0" not in status:
                return ""
            sleep(0.01)
        return "strace cannot attach to a running process (ptrace_scope)"
    finally:
        undo.all()
        sleeper.kill()
        sleeper.wait()


def _try_hosts(home: Path, undo: Undo) -> str:
    del home
    network = hub.Hub(range(1, 2), undo)
    network.build()
    network.cut([(1, 2)])
    network.heal()
    return ""


def _try_loss(home: Path, undo: Undo) -> str:
    del home
    network = hub.Hub(range(1, 2), undo)
    network.lose(50)
    network.heal()
    return ""


def _try_slow_link(home: Path, undo: Undo) -> str:
    del home
    network = hub.Hub(range(1, 2), undo)
    network.build()
    network.slow(1, 1000)
    network.heal()
    return ""


def _try_resets(home: Path, undo: Undo) -> str:
    del home, undo
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=2) as near, listener.accept()[0]:
            run("ss", "-K", "-t", "-H", "dport", "=", f":{port}")
            try:
                near.recv(1)
            except ConnectionError:
                return ""
            except TimeoutError:
                pass
    return "this kernel does not let ss -K end a connection"


def _try_images(home: Path, undo: Undo) -> str:
    image = Image(home, "probe", 16 * 1024 * 1024, undo)
    kept, lost = image.path / "kept", image.path / "lost"
    image.freeze()
    image.thaw()
    with kept.open("wb") as file:
        file.write(b"kept")
    run("sync", "-f", str(image.path))
    lost.write_bytes(b"lost")
    image.power_off()
    image.power_on()
    if not kept.exists() or lost.exists():
        return "the file system's shutdown ioctl does not lose what was not made durable"
    return ""
