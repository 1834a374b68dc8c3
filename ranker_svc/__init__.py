"""Scoring: how much the reader would like each candidate."""
