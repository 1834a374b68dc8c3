"""One file or folder a server, each with `server(place)`: installs it if need be, and describes it.

Installing may take minutes the first time; whatever is installed lies in the place's cache.
"""
