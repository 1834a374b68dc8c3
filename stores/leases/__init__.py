"""Names held by one process at a time."""
