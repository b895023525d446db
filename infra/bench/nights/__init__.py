"""Benches and ordeals of the night."""
