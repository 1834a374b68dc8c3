"""The `feedmesh` command."""
