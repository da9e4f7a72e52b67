"""The `afdc` command. Nothing heavy is imported here: `afdc --help` answers before a model library could load."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script; always ends the process with an exit code of errors.py."""
    import sys

    from afdc.cli.failures import guard

    def call() -> None:
        from afdc.cli.app import app

        app(prog_name="afdc")

    sys.exit(guard(call))
