"""A shop that does not exist: seeded, deterministic, and it knows what its people really like."""
