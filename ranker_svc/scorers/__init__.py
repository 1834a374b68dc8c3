"""Models that score candidates, one file each behind one port."""
