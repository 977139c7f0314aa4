"""The command ``router``: route one request from the shell and see why it was decided so."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from router.cli import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich", "click", "numpy", "safetensors"}:
            raise
        print(
            f"the router command needs the package {error.name!r}: pip install 'eventcore[router,cli]'", file=sys.stderr
        )
        raise SystemExit(2) from None
    app()


if __name__ == "__main__":
    main()
