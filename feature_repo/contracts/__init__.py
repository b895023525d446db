"""What the runtimes agree on: names, schemas, keys, bytes, times, errors. Standard library only."""
