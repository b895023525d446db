"""Shows the night to Prometheus: the newest run, what is served, the features online, the tables.

A night is a series of short processes that nobody can scrape; what they leave behind can be read at any time.
"""
