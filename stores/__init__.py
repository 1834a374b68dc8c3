"""One folder a role. `port.py` says what the role does; each other file is an adapter.

`stores.connect` picks the adapter from a URL's scheme; nothing else knows which one runs.
"""
