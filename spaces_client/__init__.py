"""The client of Spaces: a library (`connect`, `host`) and the command `spaces`."""

from importlib.metadata import version

AGENT = f"spaces {version('spaces')}"
