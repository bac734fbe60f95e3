"""Phase 1: write data/<corpus>/splits/<scheme>.csv, speaker-independent, and say what is in it."""

import argparse

from ser.errors import tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", help="crema_d, ravdess or demo")
    parser.add_argument("schemes", nargs="*", metavar="SCHEME", help="all schemes of the corpus by default")
    arguments = parser.parse_args()

    from ser import schemes, splits

    names = arguments.schemes or splits.schemes(arguments.corpus)
    for split in [schemes.make_split(arguments.corpus, name) for name in names]:  # all are made before one is written
        path = splits.write_split(split)
        groups = "; ".join(f"{name} {clips} clips of {who} speakers" for name, clips, who in splits.summary(split))
        print(f"{path}\n  {split.column}s: {groups}\n  source: {split.source}\n  sha256: {split.sha256}")
        if split.note:
            print(f"  note: {split.note}")


if __name__ == "__main__":
    main()
