"""Nearest posts by meaning."""
