"""Phase 2: extract the features of gin/features/<name>.gin into data/<corpus>/feats/<store>/; resumes and verifies."""

from ser.arguments import Parser, add_corpus
from ser.errors import UserError, tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("features", help="name of a file in gin/features/, such as logmel80, or an experiment")
    parser.add_argument("overrides", nargs="*", help="gin bindings such as 'encoder/precision = \"bf16\"'")
    arguments = parser.parse_args()

    from ser import config, dist, metadata
    from ser.extraction import extract
    from ser.features import store_folder

    features = config.load_features(arguments.features, arguments.overrides)
    if not features.cached:
        raise UserError(f"{arguments.features}: hears sound itself, there is nothing to extract; train it at once")
    table = metadata.read_table(arguments.corpus, check_files=True)
    with dist.process_group(dist.A_WEEK):
        for each in [features, *features.copies]:
            counts = extract(table, each)
            done = ", ".join(f"{count} {what}" for what, count in counts.items())
            if dist.is_main():
                print(f"{store_folder(arguments.corpus, each)}: {done}")


if __name__ == "__main__":
    main()
