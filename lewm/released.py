"""Released LeWM weights, in and out: `python -m lewm.released`."""

import argparse
import sys
from pathlib import Path

HELP = """Released LeWM weights, in and out.

examples:
  python -m lewm.released export runs/trials/ID my-lewm/     # weights.pt, config.json, normaliser.json, training.json
  python -m lewm.released check my-lewm/                     # sizes, hash, or what is wrong
"""


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m lewm.released",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a trained checkpoint as a release")
    export.add_argument("source", type=Path, help="a run's directory, or its checkpoint.pt")
    export.add_argument("directory", type=Path, help="where the release goes")
    export.add_argument(
        "--naming",
        choices=["transformers4", "transformers5"],
        default="transformers4",
        help="of the encoder's tensors: as in the published files (the default), or as "
        "stable-worldmodel wants them beside transformers 5",
    )
    check = commands.add_parser("check", help="say what a release is, or what is wrong with it")
    check.add_argument("directory", type=Path)
    given = parser.parse_args(arguments)
    from lewm.released_weights import describe, export_checkpoint

    try:
        if given.command == "export":
            export_checkpoint(given.source, given.directory, given.naming)
        sys.stdout.write(f"{describe(given.directory)}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
