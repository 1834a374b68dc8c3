"""Everything on one machine: the launcher behind `make run`, and the demo world."""
