"""Other systems' events as ours: pure functions from a foreign body to native events, no I/O.

A translation names fields; it never judges. What it cannot map keeps its place in `properties` or `context`, and the
rule table (`contracts.events.check_event`) decides. Each has golden files under tests/golden/dialects.
"""
