"""Benches and ordeals of answers."""
