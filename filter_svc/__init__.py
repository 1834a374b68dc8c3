"""Visibility: what the reader saw, and which candidates may be shown."""
