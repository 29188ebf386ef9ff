"""Speed against a peer, in one run on one machine, as a ratio with its spread."""
