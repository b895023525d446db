"""How the native parts of serving are compiled: in a checkout, and into a wheel."""
