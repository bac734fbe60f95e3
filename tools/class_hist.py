"""Phase 1: clips by class, part, sex and speaker, as a table and a picture, with what they say about weighting."""

import argparse

from ser.arguments import add_corpus
from ser.errors import tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus(parser)
    corpus = parser.parse_args().corpus

    from ser import histogram, metadata
    from ser.files import corpus_folder

    table = metadata.read_table(corpus)
    print(histogram.text(table))
    folder = corpus_folder(corpus)
    histogram.write(table, folder / "histogram.csv", folder / "histogram.png")
    print(f"\npicture: {folder / 'histogram.png'}\ntable:   {folder / 'histogram.csv'}")


if __name__ == "__main__":
    main()
