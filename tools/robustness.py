"""Phase 7: score a run on worse and worse recordings: noise, babble, telephone, codecs, rooms, speed and more."""

from ser.arguments import Parser, add_run
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_run(parser)
    parser.add_argument("--part", default="test", help="test (counted as one scoring) or val")
    parser.add_argument(
        "--noise", default="", metavar="FOLDER", help="recorded noise to add, too: a folder of sound files"
    )
    arguments = parser.parse_args()

    from ser import robustness

    print(robustness.table(*robustness.robustness(arguments.run, arguments.part, noise=arguments.noise)))


if __name__ == "__main__":
    main()
