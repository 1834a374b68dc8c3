"""Readers with tastes of their own, and feeds made for them by the mesh's own rules."""

import os

# Products here are of some thousand rows: on busy cores, threads that wait for one another cost
# ten times what they bring. It counts when NumPy is loaded, which is after this.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
