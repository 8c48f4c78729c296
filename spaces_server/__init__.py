"""The server of Spaces."""

from importlib.metadata import version

AGENT = f"spaces-server {version('spaces')}"
