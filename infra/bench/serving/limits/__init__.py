"""`nightjar bench serving-limits`: the figures of serving that are no comparison with another service."""
