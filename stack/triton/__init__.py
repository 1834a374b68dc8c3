"""NVIDIA Triton with the ranking model, from PyPI's wheels."""
