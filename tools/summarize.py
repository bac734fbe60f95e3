"""Phase 7: write outputs/summary.csv, a line for every evaluation, and print it as a table."""

import argparse

from ser.errors import tool


@tool
def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()

    from ser import summary

    path, rows = summary.write()
    print(summary.table(rows) if rows else "no evaluation yet; score a run: just eval last")
    print(f"\n{path}: {len(rows)} evaluations")


if __name__ == "__main__":
    main()
