"""Phase 1: build data/<corpus>/metadata.csv from the raw recordings."""

from ser.arguments import Parser, add_corpus, add_raw
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_corpus(parser)
    add_raw(parser)
    arguments = parser.parse_args()

    from ser import corpora, metadata, preparing, votes, wording

    corpus = corpora.corpus_named(arguments.corpus)
    raw = arguments.raw or metadata.raw_folder(corpus.name)
    clips, missing = preparing.clips_of(corpus, raw, arguments.allow_missing)
    metadata.remember_raw(corpus.name, raw, missing)  # first: a table is of the folder that is remembered
    rated = votes.store_votes(corpus.name, raw) if corpus.name == "crema_d" else 0
    path = metadata.write_table(corpus.name, clips)
    speakers = len({clip.speaker for clip in clips} - {""})
    unknown = sum(not clip.speaker for clip in clips)
    hours = sum(clip.seconds for clip in clips) / 3600
    print(f"{path}: {len(clips)} clips, {speakers} speakers, {hours:.2f} h{wording.missing_text(missing)}")
    if unknown:
        print(f"  {unknown} clips without a speaker: one person may be in several parts, and every figure is tagged")
    if rated:
        print(f"{path.with_name('votes.csv')}: the raters' votes for {rated} clips")
    elif path.with_name("votes.csv").is_file():
        print(f"{path.with_name('votes.csv')}: kept as it is; {raw} has no tabulatedVotes.csv")


if __name__ == "__main__":
    main()
