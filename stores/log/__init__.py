"""What was served, shown and liked, kept for training."""
