"""Models that were trained, and which of them serves."""
