"""Phase 8: a trained run as files that answer without this package, each seen to answer as the run does."""

import argparse

from ser.errors import tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="name of a run in outputs/, a path, or last")
    arguments = parser.parse_args()

    from ser import exporting

    folder, _ = exporting.export(arguments.run)
    print("\n".join(str(path) for path in sorted(folder.iterdir())))


if __name__ == "__main__":
    main()
