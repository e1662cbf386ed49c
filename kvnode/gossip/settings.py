"""GossipSettings: how often, how many, how long. All bounds of the gossip core stand here or in `messages.py`.

Source: hashicorp/memberlist's defaults for a local network; Dadgar, Phillips, Currey: Lifeguard (2018).
"""

from __future__ import annotations

import msgspec

from kvnode.config import GossipSection


class GossipSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Durations in milliseconds. Those that an operator may change stand in `GossipSection`, by the same names."""

    probe_interval_ms: int = 1_000  # one member is probed in each; ×(health score + 1)
    probe_timeout_ms: int = 500  # for the direct answer, then helpers are asked; ×(health score + 1)
    helpers: int = 3  # members asked to probe for us
    gossip_interval_ms: int = 200  # between two rounds of telling
    fanout: int = 3  # members told in each gossip interval while there is something to tell
    retransmit_factor: int = 4  # a rumor is sent at most this often ×⌈log10(n + 1)⌉ by one member
    suspicion_factor: int = 4  # a suspect is dead after this many probe intervals ×max(1, log10 n) at least …
    suspicion_max_factor: int = 6  # … and as many times that if nobody else suspects it
    push_pull_ms: int = 30_000  # whole tables are exchanged with one member this often (rarer above 32 members)
    dead_gossip_ms: int = 30_000  # the dead still hear gossip for so long, so that they can refute
    dead_contact_ms: int = 5_000  # one of the dead is pinged this often, for ever: partitions end
    forget_ms: int = 86_400_000  # a dead or left member that no configuration names is forgotten after this
    health_max: int = 8  # the health score is below this
    soon_ms: int = 10  # after a change others are told within this …
    soon_gap_ms: int = 50  # … but not more often than this
    soon_rounds: int = 2  # rounds in which a change is told
    pulls_max: int = 2  # pulls under way, to all members together; one to each
    pull_gap_ms: int = 50  # between two pulls from one member
    pull_retry_ms: int = 200  # after a failure; doubles, with jitter
    pull_retry_ms_max: int = 10_000  # where the doubling ends
    pull_stall_ms: int = 30_000  # a pull of which nothing is heard counts as failed after this
    leave_ms_max: int = 1_000  # whoever leaves waits no longer than this for others to know

    @classmethod
    def of(cls, section: GossipSection) -> GossipSettings:
        """With what the operator chose."""
        return cls(**msgspec.structs.asdict(section))

    def __post_init__(self) -> None:
        if not 0 < self.probe_timeout_ms < self.probe_interval_ms:
            raise ValueError("gossip.probe_timeout_ms must be below gossip.probe_interval_ms")
        for name in self.__struct_fields__:
            if getattr(self, name) < (0 if name == "helpers" else 1):
                raise ValueError(f"gossip.{name} is {getattr(self, name)}")
