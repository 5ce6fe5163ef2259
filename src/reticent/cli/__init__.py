"""The command line: parses, calls the rooms below, prints; computes nothing.

Room: cli (floor 6). One file a subcommand, loaded when it is called.
"""

from reticent.cli._app import main

__all__ = ["main"]
