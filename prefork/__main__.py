"""The command `prefork`, and `python -m prefork` where it is not on PATH."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point. What the command itself needs may be missing."""
    try:
        from prefork.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as error:
        from prefork.platform_matrix.imports import explain_import

        print(f"prefork: {explain_import(error) or error}", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
