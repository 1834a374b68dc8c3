"""Served feeds."""
