"""Readers with tastes of their own, and feeds made for them by the mesh's own rules."""
