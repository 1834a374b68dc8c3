"""Everything asynchronous: what follows from a write, read from the event log."""
