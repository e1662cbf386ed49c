"""Hub: every node on a host of its own, one router between them, and rules in the router that lose packets.

The harness's network namespace is the router; each node has a namespace with one veth cable to it. A directed pair is
cut by a routing rule of the router (`ip rule … blackhole`): packets vanish without a word, connections included.
Random loss needs nftables, slow links `tc tbf`, resets `ss -K`. Nothing of this leaves the sandbox.
"""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path
from time import sleep

from scripts.faults.command import run
from scripts.faults.shapes import Link
from scripts.faults.undo import Undo

PEER_PORT = 7501
CLIENT_PORT = 7401


class Hub:
    """Call `build` once, inside the sandbox."""

    def __init__(self, nodes: range, undo: Undo) -> None:
        self._nodes = nodes
        self._undo = undo
        self._hosts: dict[int, subprocess.Popen[bytes]] = {}
        self._cut: set[Link] = set()
        self._lossy = False
        self._slow: set[int] = set()

    def build(self) -> None:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
        for node in self._nodes:
            host = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], start_new_session=True)
            self._hosts[node] = host
            self._undo.register(f"host {node}", partial(_end_host, host))
            _wait_for_namespace(host.pid)
            run("ip", "link", "add", f"veth{node}", "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
            self._undo.register(f"cable {node}", partial(_end_cable, node))
            run("ip", "addr", "add", f"{gateway(node)}/30", "dev", f"veth{node}")
            run("ip", "link", "set", f"veth{node}", "up")
            inside = self.prefix(node)
            run(*inside, "ip", "link", "set", "lo", "up")
            run(*inside, "ip", "addr", "add", f"{address(node)}/30", "dev", "eth0")
            run(*inside, "ip", "link", "set", "eth0", "up")
            run(*inside, "ip", "route", "add", "default", "via", gateway(node))

    def prefix(self, node: int) -> list[str]:
        """Runs (and becomes) a command on the node's host."""
        return ["nsenter", f"--net=/proc/{self._hosts[node].pid}/ns/net", "--"]

    # ── what is done to links ───────────────────────────────────────────────────────────────────────

    def cut(self, links: list[Link]) -> None:
        for link in links:
            if link not in self._cut:
                run("ip", "rule", "add", *_rule(link))
                self._cut.add(link)

    def lose(self, percent: int) -> None:
        """Random loss of everything between nodes, both ways."""
        run("nft", "add", "table", "ip", "chaos")
        self._lossy = True
        run("nft", "add", "chain", "ip", "chaos", "loss", "{ type filter hook forward priority 0; }")
        run("nft", "add", "rule", "ip", "chaos", "loss", *f"numgen random mod 100 < {percent} drop".split())

    def slow(self, node: int, kbit: int) -> None:
        """What goes to `node` passes through a narrow pipe."""
        run(*f"tc qdisc add dev veth{node} root tbf rate {kbit}kbit burst 8kb latency 300ms".split())
        self._slow.add(node)

    def reset(self, node: int) -> int:
        """Kill all established connections of `node` to other nodes → how many."""
        peers = [address(peer) for peer in self._nodes if peer != node]
        filters = " or ".join(f"dst {peer}" for peer in peers)
        killed = run(*self.prefix(node), "ss", "-K", "-t", "-H", "state", "established", f"( {filters} )")
        return len(killed.splitlines())

    def heal(self) -> None:
        for link in sorted(self._cut):
            run("ip", "rule", "del", *_rule(link))
        self._cut.clear()
        if self._lossy:
            run("nft", "delete", "table", "ip", "chaos")
            self._lossy = False
        for node in sorted(self._slow):
            run("tc", "qdisc", "del", "dev", f"veth{node}", "root")
        self._slow.clear()


def address(node: int) -> str:
    return f"10.77.{node}.2"


def gateway(node: int) -> str:
    return f"10.77.{node}.1"


def _rule(link: Link) -> list[str]:
    return ["iif", f"veth{link[0]}", "to", address(link[1]), "blackhole"]


def _wait_for_namespace(pid: int) -> None:
    """Until the child has left our network namespace."""
    own = Path("/proc/self/ns/net").readlink()
    for _ in range(1000):
        if Path(f"/proc/{pid}/ns/net").readlink() != own:
            return
        sleep(0.01)
    raise TimeoutError("unshare --net made no namespace")


def _end_host(host: subprocess.Popen[bytes]) -> None:
    host.kill()
    host.wait()


def _end_cable(node: int) -> None:
    subprocess.run(["ip", "link", "del", f"veth{node}"], capture_output=True, timeout=30, check=False)
