"""Mailboxes and authored posts."""
