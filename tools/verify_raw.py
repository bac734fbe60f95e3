"""Phase 1: see that the raw recordings of a corpus are whole; writes data/<corpus>/verify.json."""

from ser.arguments import Parser, add_corpus, add_raw
from ser.errors import UserError, tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_corpus(parser)
    add_raw(parser)
    arguments = parser.parse_args()

    from ser import corpora, demo, metadata, verify
    from ser.files import corpus_folder, write_json

    corpus = corpora.corpus_named(arguments.corpus)
    if corpus.name == "demo" and arguments.raw is None:
        demo.make(corpus_folder("demo") / "raw")
    raw = arguments.raw or metadata.raw_folder(corpus.name)
    report = verify.check(corpus, raw, arguments.allow_missing)
    path = corpus_folder(corpus.name) / "verify.json"
    write_json(path, report.as_dict())
    metadata.store_sound_hashes(corpus.name, raw, report.sound_hashes)
    print(verify.table(report))
    if report.errors:
        raise UserError(f"{len(report.errors)} errors in {report.raw}; all of them stand in {path}")
    print(f"ok; details in {path}")


if __name__ == "__main__":
    main()
