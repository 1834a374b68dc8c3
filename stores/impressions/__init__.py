"""What was shown to whom."""
