"""Events on their way to the log."""
