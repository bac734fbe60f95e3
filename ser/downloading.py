"""Where each corpus comes from and on which terms; ``download`` fetches it and unpacks its archive."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ser import corpora
from ser.archives import unpack
from ser.errors import UserError, nearest, some
from ser.fetching import KEPT, Item, Outcome, fetch
from ser.files import cannot_write, locked

__all__ = ["Source", "download", "source", "trouble"]


@dataclass(frozen=True)
class Source:
    """Where a corpus comes from; ``clips`` sound files are in it, ``.zip`` items get unpacked.

    Its licence, and how to cite it, stand in ``data/<corpus>/README.md``.
    """

    corpus: str
    page: str
    clips: int
    items: Callable[[], list[Item]]
    terms: str  # what may not be done

    @property
    def title(self) -> str:
        """The name of the corpus."""
        return corpora.corpus_named(self.corpus).title


def crema_d_items() -> list[Item]:
    """Return the 7442 sound files of the manifest, which git-lfs keeps at an address of its own, and three tables."""
    repository = "CheyneyComputerScience/CREMA-D/master"
    tables = ("VideoDemographics.csv", "processedResults/summaryTable.csv", "processedResults/tabulatedVotes.csv")
    items = []
    for clip, official in corpora.crema_d_official().items():
        url = f"https://media.githubusercontent.com/media/{repository}/AudioWAV/{clip}.wav"
        items.append(Item(url, f"AudioWAV/{clip}.wav", f"sha256:{official.sha256}", official.size))
    return items + [Item(f"https://raw.githubusercontent.com/{repository}/{table}", table) for table in tables]


RAVDESS_ARCHIVE = Item(  # checksum as Zenodo publishes it
    "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip", "Audio_Speech_Actors_01-24.zip",
    "md5:bc696df654c87fed845eb13823edef8a", 208_468_073,
)  # fmt: skip
EMODB_ARCHIVE = Item("http://emodb.bilderbar.info/download/download.zip", "download.zip")  # nothing published
SOURCES = {
    entry.corpus: entry
    for entry in (
        Source(
            "crema_d", "https://github.com/CheyneyComputerScience/CREMA-D", 7442, crema_d_items,
            "no public use without naming the source; databases made from it stay under the same licence",
        ),
        Source(
            "ravdess", "https://zenodo.org/records/1188976", 1440, lambda: [RAVDESS_ARCHIVE],
            "no commercial use; no passing on without credit, nor of adaptations under another licence",
        ),
        Source(
            "emodb", "http://emodb.bilderbar.info", 535, lambda: [EMODB_ARCHIVE],
            "no publication without the citation; ask its authors before any use but research",
        ),
    )
}  # fmt: skip


def source(corpus: str) -> Source:
    """Return where a corpus comes from; raise a UserError where nothing is known of it."""
    if corpus == "demo":
        raise UserError("corpus 'demo' is built in, there is nothing to download; go on with: just prepare demo")
    if corpus not in SOURCES:
        raise UserError(f"corpus '{corpus}' cannot be downloaded{nearest(corpus, SOURCES)}")
    return SOURCES[corpus]


def download(
    source: Source, folder: Path, workers: int = 8, base: str = "", sleep: Callable | None = None, progress: bool = True
) -> Outcome:
    """Fetch a corpus into its raw ``folder`` and unpack its archive; what is there and right is kept.

    ``base`` is a mirror that has the items by their paths; the other arguments are those of ``fetch``.

    Raises:
        UserError: as ``fetch`` and ``unpack``, or another download writes here, or the archive lacks clips.
    """
    items = [item._replace(url=f"{base.rstrip('/')}/{quote(item.path)}") if base else item for item in source.items()]
    busy = f"{folder}: another download is writing here; wait for it, or take another folder: --to PATH"
    try:
        with locked(folder / ".download.lock", busy):
            outcome = fetch(items, folder, workers, sleep, progress)
            for archive in [folder / item.path for item in items if item.path.endswith(".zip") and not outcome.failed]:
                outcome.sound = unpack(archive, folder, progress)
                if (clips := sum(outcome.sound)) != source.clips:
                    wanted = f"expected the {source.clips} of {source.title}; remove it and see {source.page}"
                    raise UserError(f"{archive}: {clips} sound files, {wanted}")
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error, KEPT) from error
    return outcome


def trouble(source: Source, folder: Path, outcome: Outcome) -> str:
    """Return the one line of a download that failed: what failed, and how to go on."""
    if not outcome.offline:
        count = len(outcome.failed) + len(outcome.fetched) + len(outcome.kept)
        first = some((f"{path} ({why})" for path, why in outcome.failed.items()), 3)
        again = "run the same command again, it goes on from here"
        return f"{folder}: {len(outcome.failed)} of {count} files failed: {first}; {again}"
    parents: dict[str, list[Item]] = {}
    for item in source.items():
        if item.path in outcome.failed:
            parents.setdefault(item.url.rpartition("/")[0], []).append(item)
    copies = [
        f"{len(group)} files of {parent}/ (such as {Path(group[0].path).name}) to {(folder / group[0].path).parent}/"
        if len(group) > 1 else f"{group[0].url} to {folder / group[0].path}"
        for parent, group in parents.items()
    ]  # fmt: skip
    how = f"just {shlex.quote(f'raw={folder}')} prepare {source.corpus}"
    if copies[0].endswith(".zip"):
        how = f"run this again, which unpacks it; or unpack it there yourself and go on with: {how}"
    return f"no network: {next(iter(outcome.failed.values()))}; bring {' and '.join(copies)}, then {how}"
