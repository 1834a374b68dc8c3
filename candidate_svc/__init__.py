"""Retrieval: which posts could be in this reader's feed."""
