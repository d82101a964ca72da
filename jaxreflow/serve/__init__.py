"""The policy server: protocol, connections and answers. Nothing here knows a simulator or a run."""
