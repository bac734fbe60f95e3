"""Phase 7: one self-contained report.html of a run: figures, curves, confusion, subgroups, mistakes, settings."""

from ser.arguments import Parser, add_run
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_run(parser)
    parser.add_argument("--sound", action="store_true", help="put the recordings of the worst mistakes into the page")
    arguments = parser.parse_args()

    from ser import report

    print(report.report(arguments.run, arguments.sound))


if __name__ == "__main__":
    main()
