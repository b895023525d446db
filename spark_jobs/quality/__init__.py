"""The nightly quality gate of the data: what came (profile), what may come (limits), the verdict, the page."""
