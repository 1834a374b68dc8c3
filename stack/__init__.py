"""The real servers behind `make stack`, each installed from a package registry."""
