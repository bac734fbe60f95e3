"""``just publish``: an export where others can read it, and back again: S3, the Hugging Face Hub, any fsspec target.

Files go to ``<url>/<version>/``, the version being part of the SHA-256 of ``export.json``; then ``<url>/export.json``
is written, which alone makes the version the current one. A reader therefore sees the old version or the new one,
whenever an upload ends. The hub has commits, which are whole or not at all; there the files lie in the root.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ser.errors import UserError, some
from ser.export_index import INDEX, check_index, checked_file, read_index
from ser.files import read_json, sha256_of, write_bytes

__all__ = ["check_target", "fetch", "publish"]

CARD = "model_card.md"
VERSION = 16  # characters of the SHA-256 of the index that name a version
EXTRAS = {"s3": "pip install s3fs", "http": "pip install aiohttp", "https": "pip install aiohttp"}


def publish(folder: Path, url: str, overwrite: bool = False, private: bool = False) -> list[str]:
    """Upload an export; what is there already is not uploaded again.

    Args:
        folder: of the export.
        url: ``s3://bucket/path``, ``hf://user/repository``, ``file:///path``, or another that fsspec knows.
        overwrite: replace another version that is published there.
        private: make a new repository of the hub private; one that is there stays as it is.

    Returns:
        Lines that say what was done, and how to read it back.

    Raises:
        UserError: a damaged export, a target that cannot be written, or another version there.
    """
    check_target(url)
    if private and not is_hub(url):
        raise UserError(f"{shown(url)}: who may read is the storage's to say; --private is for hf://")
    index = read_index(folder)
    if "unfinished" in index.get("tags", []):
        raise UserError(f"{folder}: its run is not finished; go on with: just resume {index['run']}, then export again")
    files = sorted(index["files"])
    for name in files:
        checked_file(folder, index, name)
    pin = sha256_of(folder / INDEX)
    if is_hub(url):
        done = to_hub(folder, files, url, pin, overwrite, private)
    else:
        done = to_store(folder, files, url, pin, overwrite)
    return [*done, f"ser predict {shown(url)} FILE...", f"pinned: --sha256 {pin}"]


def to_store(folder: Path, files: Sequence[str], url: str, pin: str, overwrite: bool) -> list[str]:
    """Upload to an fsspec target, the index last."""
    store, root = opened(url)
    try:
        there = store.exists(f"{root}/{INDEX}")
        current = json.loads(store.cat_file(f"{root}/{INDEX}"))["at"].rstrip("/") if there else ""
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown(url)}/{INDEX}: not the index of an export; choose another place") from error
    except Exception as error:  # of the client of the storage, credentials among it
        raise unreachable(url, error) from error
    version = pin[:VERSION]
    if current and current != version and not overwrite:
        raise different(url, current)
    done, local = [], "file" in store.protocol
    try:
        if local:
            store.makedirs(f"{root}/{version}", exist_ok=True)  # elsewhere it might make a bucket that nobody wanted
        for name in [*files, INDEX]:
            path, there = folder / name, f"{root}/{version}/{name}"
            if store.exists(there) and store.info(there)["size"] == path.stat().st_size:
                done.append(f"kept      {name}")  # the folder is named after the version, so it is the same file
                continue
            store.put_file(str(path), f"{there}.part" if local else there)
            if local:  # other stores show a file when it is whole
                store.mv(f"{there}.part", there)
            done.append(f"uploaded  {name}")
        current_index = f"{root}/{INDEX}"
        store.pipe_file(f"{current_index}.part" if local else current_index, pointer(pin))
        if local:
            store.mv(f"{current_index}.part", current_index)
    except Exception as error:
        raise unreachable(url, error) from error
    return [*done, f"published {shown(url)}, version {version}"]


def pointer(pin: str) -> bytes:
    """Return what makes a version the current one."""
    return (json.dumps({"at": f"{pin[:VERSION]}/", "sha256": pin}, indent=2) + "\n").encode()


def to_hub(folder: Path, files: Sequence[str], url: str, pin: str, overwrite: bool, private: bool) -> list[str]:
    """Upload to a repository of the hub in one commit, with the model card as its README."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, repository = HfApi(), hub_repository(url)
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        info = api.repo_info(repository)
        if private and not info.private:
            raise UserError(f"{url}: is public already; make it private on the hub first, or choose another repository")
        parent = info.sha
        there = set(api.list_repo_files(repository, revision=parent)) - {".gitattributes"}
        ours: set[str] = set()
        if INDEX in there:
            current = Path(api.hf_hub_download(repository, INDEX, revision=parent))
            if sha256_of(current) != pin and not overwrite:
                raise different(url, sha256_of(current)[:VERSION])
            ours = set(check_index(f"{shown(url)}/{INDEX}", read_json(current))["files"])
        elif there and not overwrite:
            raise UserError(f"{url}: holds files of something else ({some(sorted(there))}); choose another repository")
        operations: list[Any] = [CommitOperationAdd(name, str(folder / name)) for name in [*files, INDEX]]
        if CARD in files:
            operations.append(CommitOperationAdd("README.md", str(folder / CARD)))
        operations += [CommitOperationDelete(name) for name in sorted((ours & there) - set(files))]
        message = f"ser export {pin[:VERSION]}"
        api.create_commit(repository, operations, commit_message=message, parent_commit=parent)
    except UserError:
        raise
    except Exception as error:
        raise unreachable(url, error) from error
    return [*(f"uploaded  {name}" for name in files), f"published {shown(url)}, version {pin[:VERSION]}"]


def fetch(url: str, files: Sequence[str], sha256: str = "", revision: str = "") -> Path:
    """Return a folder with the index and some files of a published export; what is there already is not fetched again.

    Args:
        url: as of ``publish``, or an ``https://`` folder that holds the same.
        files: names of those that are needed.
        sha256: of the version's ``export.json``; without it the current version.
        revision: branch, tag or commit, of the hub.

    Raises:
        UserError: nothing there, no network, or another version than ``sha256`` pins.
    """
    if revision and not is_hub(url):
        raise UserError(f"--revision is of hf://, not of {shown(url)}; pin it with --sha256")
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise UserError(f"--sha256 is '{sha256}'; expected the 64 hexadecimal digits that ser info prints")
    check_address(url)
    cache = cache_folder()
    if sha256 and is_pinned(cache / sha256, sha256, files):
        return cache / sha256
    read = hub_reader(url, revision) if is_hub(url) else store_reader(url, sha256)
    content = read(INDEX)
    fresh = cache / f".fetch.{os.getpid()}"
    try:
        write_bytes(fresh / INDEX, content)
        pin = sha256_of(fresh / INDEX)
        if sha256 and pin != sha256:
            raise UserError(f"{shown(url)}: the SHA-256 of its {INDEX} is {pin}, expected {sha256}: another version")
        index = check_index(f"{shown(url)}/{INDEX}", read_json(fresh / INDEX))
        folder = cache / pin
        for name in files:
            if name not in index["files"]:
                raise UserError(f"{shown(url)}: holds no {name}; it has {', '.join(sorted(index['files']))}")
            if not is_whole(folder, index, name):
                write_bytes(folder / name, read(name))
                checked_file(folder, index, name)
        write_bytes(folder / INDEX, content)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def is_whole(folder: Path, index: dict[str, Any], name: str) -> bool:
    """Say whether a file was fetched before, whole."""
    try:
        checked_file(folder, index, name)
    except UserError:
        return False
    return True


def is_pinned(folder: Path, sha256: str, files: Sequence[str]) -> bool:
    """Say whether the cache holds the pinned version, its index and the files that are needed, all whole."""
    if not (folder / INDEX).is_file() or sha256_of(folder / INDEX) != sha256:
        return False
    index = read_index(folder)
    return all(is_whole(folder, index, name) for name in files)


def store_reader(url: str, sha256: str) -> Callable[[str], bytes]:
    """Return what reads a file of the current version, or of the pinned one, from an fsspec target."""
    store, root = opened(url)

    def content(path: str) -> bytes:
        try:
            return store.cat_file(path)
        except FileNotFoundError as error:
            raise UserError(f"{shown(url)}: no published model (it lacks {path.rpartition('/')[2]})") from error
        except Exception as error:
            raise unreachable(url, error) from error

    def exists(path: str) -> bool:
        try:
            return store.exists(path)
        except Exception as error:
            raise unreachable(url, error) from error

    at = f"{sha256[:VERSION]}/"
    if not sha256 or not exists(f"{root}/{at}{INDEX}"):
        found = content(f"{root}/{INDEX}")
        try:
            at = json.loads(found).get("at", "")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{shown(url)}/{INDEX}: not the index of a published model") from error
        if not re.fullmatch(rf"([0-9a-f]{{{VERSION}}}/)?", at):
            raise UserError(f"{shown(url)}/{INDEX}: not the index of a published model")
    return lambda name: content(f"{root}/{at}{name}")


def hub_reader(url: str, revision: str) -> Callable[[str], bytes]:
    """Return what reads a file of a repository of the hub, all of one commit."""
    from huggingface_hub import HfApi

    api, repository = HfApi(), hub_repository(url)
    try:
        commit = api.repo_info(repository, revision=revision or None).sha
    except Exception as error:
        raise unreachable(url, error) from error

    def read(name: str) -> bytes:
        try:
            return Path(api.hf_hub_download(repository, name, revision=commit)).read_bytes()
        except Exception as error:
            raise unreachable(url, error) from error

    return read


def opened(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        store, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{shown(url)}: needs another package: {EXTRAS.get(protocol, error)}") from error
    except Exception as error:
        raise unreachable(url, error) from error
    return store, root.rstrip("/")


def is_hub(url: str) -> bool:
    """Say whether a URL is of the Hugging Face Hub."""
    return url.startswith("hf://")


def hub_repository(url: str) -> str:
    """Return ``user/repository`` of an ``hf://`` URL."""
    name = url.removeprefix("hf://").strip("/")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{url}: expected hf://USER/REPOSITORY")
    return name


def check_target(url: str) -> None:
    """Raise a UserError for what is no address to publish to; nothing is asked of the network."""
    if "://" not in url:
        raise UserError(f"{url}: expected an address such as s3://bucket/name, hf://user/name or file:///path")
    check_address(url)
    if not is_hub(url):
        opened(url)


def check_address(url: str) -> None:
    """Raise a UserError for a URL with credentials in it: they would end in histories and logs."""
    if "@" in url and not is_hub(url):
        raise UserError(
            f"{shown(url)}: an address must not hold credentials (nor '@'); leave them to the client of the storage: "
            "its environment variables or its file"
        )


def shown(url: str) -> str:
    """Return a URL without what may be a password in it, and without a slash at its end."""
    return re.sub(r"://.*@", "://", url).partition("?")[0].rstrip("/")


def different(url: str, current: str) -> UserError:
    """Say that another version is published already."""
    return UserError(
        f"{shown(url)}: holds another version, {current[:VERSION]}; choose another place, or replace it: "
        "just overwrite=1 publish RUN URL"
    )


def unreachable(url: str, error: Exception) -> UserError:
    """Say in one line that a target cannot be reached; the client's own words may hold signed addresses."""
    reason = re.sub(r"\s+", " ", str(error)).strip()
    reason = re.sub(r"https?://\S+", "...", reason)[:160]
    return UserError(
        f"{shown(url)}: cannot be read or written ({type(error).__name__}: {reason}); see the address, the network, "
        "and the credentials of the standard chain"
    )


def cache_folder() -> Path:
    """Return where fetched models are kept: ``$XDG_CACHE_HOME/ser/models``, by default in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ser/models"
