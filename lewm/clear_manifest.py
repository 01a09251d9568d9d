"""What a manifest of start/goal pairs asks, ours or CLEAR-LeWM's: `python -m lewm.clear_manifest`."""

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m lewm.clear_manifest",
        description="Prints a manifest's protocol and pairs, without its dataset.",
    )
    parser.add_argument("file", help="a manifest of ours or of CLEAR-LeWM (JSON)")
    given = parser.parse_args(arguments)
    from lewm.named_manifest import describe

    try:
        sys.stdout.write(f"{describe(given.file)}\n")
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
