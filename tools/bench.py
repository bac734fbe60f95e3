"""Measure against what a user would pick instead; writes outputs/bench/<name>.json."""

from ser.arguments import Parser
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "names", nargs="+", help="one or more of augment, data, extraction, inference, models, startup, training"
    )
    arguments = parser.parse_args()

    from ser import benchmarks, measuring

    for name in arguments.names:
        path, rows = benchmarks.run(name)
        print(f"{measuring.table(rows)}\n{path}")


if __name__ == "__main__":
    main()
