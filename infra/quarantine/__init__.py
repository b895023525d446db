"""What was refused, seen again: read the quarantine, mend events, send them once more."""
