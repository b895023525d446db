"""Benches and ordeals of the event path."""
