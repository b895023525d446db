"""Files into the bronze tables: every line is accepted, quarantined with its reason, or (on request) not stored."""
