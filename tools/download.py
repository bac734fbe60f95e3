"""Phase 0: fetch the official recordings of a corpus into data/<corpus>/raw; goes on where it was cut off."""

import shlex
from pathlib import Path

from ser.arguments import Parser
from ser.errors import UserError, tool

MOST_WORKERS = 32


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("corpus", help="crema_d, ravdess or emodb")
    parser.add_argument(
        "--to", type=lambda text: Path(text).expanduser(), help="folder for the recordings; data/CORPUS/raw by default"
    )
    parser.add_argument("--workers", type=int, default=8, help="files at the same time; 8 by default")
    parser.add_argument("--base", default="", help="address of a mirror that holds the files as the folder will")
    arguments = parser.parse_args()
    if not 1 <= arguments.workers <= MOST_WORKERS:
        raise UserError(f"--workers {arguments.workers}: expected 1 to {MOST_WORKERS}")

    from ser import corpora, downloading
    from ser.files import corpus_folder

    source = downloading.source(arguments.corpus)
    folder = (arguments.to or corpus_folder(source.corpus) / "raw").absolute()
    print(f"{source.title}: {source.page}")
    print(f"licence   {corpora.licence(source.corpus).partition(': ')[2]}")
    print(f"terms     {source.terms}")
    print(f"cite      {corpora.readme_entry(source.corpus, 'Cite:')}")
    print(f"folder    {folder}", flush=True)
    outcome = downloading.download(source, folder, arguments.workers, arguments.base)
    print(outcome)
    if outcome.failed:
        raise UserError(downloading.trouble(source, folder, outcome))
    print(f"ok; go on with: just {shlex.quote(f'raw={folder}')} prepare {source.corpus}")


if __name__ == "__main__":
    main()
