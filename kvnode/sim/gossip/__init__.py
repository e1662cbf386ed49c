"""Groups of gossip cores on virtual time: what they come to believe of each other under every fault of a network."""
