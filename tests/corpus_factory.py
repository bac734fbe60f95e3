"""Small synthetic corpora for the tests: those of a rehearsal, prepared in a moment."""

from functools import cache
from pathlib import Path

from ser import metadata, preparing, schemes, splits
from ser.corpora import corpus_named
from ser.rehearsal import FEWEST, clip_names, make_corpus, synthetic_sound

__all__ = ["FEWEST", "clip_names", "make_corpus", "official_split", "prepare_corpus", "synthetic_sound"]


def prepare_corpus(home: Path, corpus: str, **kwargs) -> Path:
    """Make a corpus as ``make_corpus`` does, then its metadata and all its splits; return the raw folder.

    The caller has set SER_HOME to ``home``: ``monkeypatch.setenv("SER_HOME", str(tmp_path))``.
    """
    raw = make_corpus(home, corpus, **kwargs)
    clips, missing = preparing.clips_of(corpus_named(corpus), raw, allow_missing=True)
    metadata.write_table(corpus, clips)
    metadata.remember_raw(corpus, raw, missing)
    for scheme in splits.schemes(corpus):
        splits.write_split(official_split(corpus, scheme))
    return raw


@cache
def official_split(corpus: str, scheme: str) -> splits.Split:
    """Return a computed split; computing one takes a moment, so each is computed once a process."""
    return schemes.make_split(corpus, scheme)
