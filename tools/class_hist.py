"""Phase 1: clips by class, part, sex and speaker, as a table and a picture, with what they say about weighting."""

from ser.arguments import Parser, add_corpus
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_corpus(parser)
    parser.add_argument(
        "overrides", nargs="*", help="gin bindings such as 'split/fold = 2' or 'labels/source = \"voice\"'"
    )
    arguments = parser.parse_args()

    from ser import config, histogram
    from ser.files import corpus_folder

    protocol = config.load_protocol(arguments.corpus, arguments.overrides)
    table = histogram.by_protocol(protocol)
    scheme = f"{protocol.describe()}, labels {protocol.label_source}"
    print(histogram.text(table, scheme))
    folder = corpus_folder(arguments.corpus)
    histogram.write(table, folder / "histogram.csv", folder / "histogram.png", scheme)
    print(f"\npicture: {folder / 'histogram.png'}\ntable:   {folder / 'histogram.csv'}")


if __name__ == "__main__":
    main()
