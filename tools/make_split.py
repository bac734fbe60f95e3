"""Phase 1: write data/<corpus>/splits/<scheme>.csv, and say what is in it and whether it is speaker-independent."""

from dataclasses import asdict

from ser.arguments import Parser, add_corpus
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("schemes", nargs="*", metavar="SCHEME", help="all schemes of the corpus by default")
    arguments = parser.parse_args()

    from ser import corpora, metadata, schemes, splits

    names = arguments.schemes or splits.schemes(arguments.corpus)
    entry = corpora.corpus_named(arguments.corpus)
    at_hand = [] if entry.official() else [asdict(clip) for clip in metadata.read_table(entry.name).clips]
    speakers = {clip["clip"]: clip["speaker"] for clip in at_hand or schemes.official_clips(entry.name)}
    made = [schemes.make_split(entry.name, name, at_hand) for name in names]  # all, before one is written
    for split in made:
        path = splits.write_split(split)
        counts = splits.summary(split, speakers)
        groups = "; ".join(f"{name} {clips} clips of {who} speakers" for name, clips, who in counts)
        print(f"{path}\n  {split.column}s: {groups}\n  source: {split.source}\n  sha256: {split.sha256}")
        if split.note:
            print(f"  note: {split.note}")


if __name__ == "__main__":
    main()
