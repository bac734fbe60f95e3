"""Measure against what a user would pick instead; writes outputs/bench/<name>.json."""

import argparse

from ser.errors import tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="data, extraction, models, startup or training")
    arguments = parser.parse_args()

    from ser import benchmarks, measuring

    path, rows = benchmarks.run(arguments.name)
    print(f"{measuring.table(rows)}\n{path}")


if __name__ == "__main__":
    main()
