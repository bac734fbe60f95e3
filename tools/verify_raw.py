"""Phase 1: see that the raw recordings of a corpus are whole; writes data/<corpus>/verify.json."""

import argparse
from pathlib import Path

from ser.errors import UserError, tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", help="crema_d, ravdess, emodb, custom or demo")
    parser.add_argument(
        "--raw",
        type=lambda text: Path(text).expanduser(),
        help="folder with the recordings (custom: its CSV); remembered from the last time by default",
    )
    parser.add_argument("--allow-missing", action="store_true", help="go on although official clips are not there")
    arguments = parser.parse_args()

    from ser import corpora, demo, metadata, verify
    from ser.files import corpus_folder, write_json

    corpus = corpora.corpus(arguments.corpus)
    if corpus.name == "demo" and arguments.raw is None:
        demo.make(corpus_folder("demo") / "raw")
    report = verify.check(corpus, arguments.raw or metadata.raw_folder(corpus.name), arguments.allow_missing)
    path = corpus_folder(corpus.name) / "verify.json"
    write_json(path, report.as_dict())
    print(verify.table(report))
    if report.errors:
        raise UserError(f"{len(report.errors)} errors in {report.raw}; all of them stand in {path}")
    print(f"ok; details in {path}")


if __name__ == "__main__":
    main()
