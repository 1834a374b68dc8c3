"""Presentation: the order on the page, and everything needed to show it."""
