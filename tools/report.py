"""Phase 7: one self-contained report.html of a run: figures, curves, confusion, subgroups, mistakes, settings."""

import argparse

from ser.errors import tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="name of a run in outputs/, a path, or last")
    parser.add_argument("--sound", action="store_true", help="put the recordings of the worst mistakes into the page")
    arguments = parser.parse_args()

    from ser import report

    print(report.report(arguments.run, arguments.sound))


if __name__ == "__main__":
    main()
