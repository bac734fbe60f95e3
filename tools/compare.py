"""Phase 7: compare two runs on the same clips: paired differences over speakers, and the clips that changed."""

from ser.arguments import Parser, add_run
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_run(parser, "first")
    parser.add_argument("second", help="another; differences are second less first")
    parser.add_argument("--part", default="test", help="val, test, or the name of an evaluation that both have")
    arguments = parser.parse_args()

    from ser import comparing

    print(comparing.table(*comparing.compare(arguments.first, arguments.second, arguments.part)))


if __name__ == "__main__":
    main()
