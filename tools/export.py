"""Phase 8: a trained run as files that answer without this package, each seen to answer as the run does."""

from ser.arguments import Parser, add_run
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_run(parser)
    arguments = parser.parse_args()

    from ser import exporting

    folder, _ = exporting.export(arguments.run)
    print("\n".join(str(path) for path in sorted(folder.iterdir())))


if __name__ == "__main__":
    main()
