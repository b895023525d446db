"""Measurements that anybody can repeat: each prints a table and, with `--json OUT`, writes one form of report."""
