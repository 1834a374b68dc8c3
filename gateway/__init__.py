"""The REST face of feedmesh."""
