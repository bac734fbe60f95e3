"""Published and read back: S3 as moto speaks it, files, the hub; killed in the middle, and never another's version."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from conftest import PROJECT, command, one_error_line

from ser import exporting, publishing
from ser.errors import UserError
from ser.export_index import INDEX
from ser.files import read_json, sha256_of, write_json
from ser.loading import load

SECRET = "wJalrXUtnFEMI-not-a-real-secret"


@pytest.fixture
def export(delivered, tmp_path, monkeypatch) -> Path:
    """Return a copy of the export, and keep the cache with the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SER_HOME", str(delivered))
    return Path(shutil.copytree(delivered / "outputs/small/export", tmp_path / "export"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start moto's S3 server; return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(tmp_path_factory.mktemp("moto") / "log", "w")  # noqa: SIM115 - lives as long as the server
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    for _ in range(300):
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()


@pytest.fixture
def bucket(server, monkeypatch) -> str:
    """Return the URL of an empty bucket; credentials come by the standard chain."""
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid4()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


def objects(bucket: str) -> dict[str, tuple[int, str]]:
    """Return size and time of every object of a bucket."""
    import boto3

    found = boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://")).get("Contents", [])
    return {entry["Key"]: (entry["Size"], str(entry["LastModified"])) for entry in found}


def changed(export: Path) -> Path:
    """Make another version of an export."""
    index = json.loads((export / INDEX).read_text()) | {"run": "another"}
    (export / INDEX).write_text(json.dumps(index))
    return export


def test_what_is_published_to_s3_is_read_back_and_answers(export, bucket):
    url = f"{bucket}/models/small"
    said = publishing.publish(export, url)
    version = sha256_of(export / INDEX)[: publishing.VERSION]
    names = {f"models/small/{version}/{path.name}" for path in export.iterdir()}
    assert set(objects(bucket)) == names | {"models/small/export.json"}
    assert said[-1].endswith(sha256_of(export / INDEX))
    import numpy as np

    sound = np.random.default_rng(0).normal(size=16_000).astype(np.float32) / 10
    here = load(export).predict(sound)
    assert load(url).predict(sound) == here
    assert load(url, variant="int8", sha256=sha256_of(export / INDEX)).predict(sound).label
    assert not [line for line in said if SECRET in line or "AKID" in line]


def test_what_is_there_already_is_not_uploaded_again(export, bucket):
    publishing.publish(export, bucket)
    before = objects(bucket)
    said = publishing.publish(export, bucket)
    assert not [line for line in said if line.startswith("uploaded")]
    assert {name: facts for name, facts in objects(bucket).items() if "/" in name} == {
        name: facts for name, facts in before.items() if "/" in name
    }


def test_another_version_is_replaced_only_when_told(export, bucket):
    publishing.publish(export, bucket)
    first = load(bucket).sha256
    changed(export)
    with pytest.raises(UserError, match="holds another version"):
        publishing.publish(export, bucket)
    assert load(bucket).sha256 == first
    publishing.publish(export, bucket, overwrite=True)
    assert load(bucket).index["run"] == "another"
    shutil.rmtree(publishing.cache_folder())
    assert load(bucket, sha256=first).sha256 == first, "the version before is still there for whoever pinned it"


KILLED = """
import os, signal, sys
import s3fs
from ser import publishing
put, count = s3fs.S3FileSystem._put_file, 0
async def counted(self, *arguments, **options):
    global count
    count += 1
    if count > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return await put(self, *arguments, **options)
s3fs.S3FileSystem._put_file = counted
from pathlib import Path
publishing.publish(Path(sys.argv[1]), sys.argv[2], overwrite=True)
"""


@pytest.mark.parametrize("after", [1, 5])
def test_killed_in_the_middle_the_version_before_stays_and_the_rest_follows(export, bucket, after):
    publishing.publish(export, bucket)
    first = load(bucket).sha256
    changed(export)
    done = subprocess.run([sys.executable, "-c", KILLED, str(export), bucket, str(after)], env=os.environ, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert load(bucket).sha256 == first
    kept = {name: facts for name, facts in objects(bucket).items() if "/" in name}
    said = publishing.publish(export, bucket, overwrite=True)
    assert len([line for line in said if line.startswith("kept")]) == after
    assert load(bucket).index["run"] == "another"
    assert kept.items() <= objects(bucket).items()


def test_a_bucket_or_server_that_is_not_there_is_one_line_without_secrets(export, bucket, monkeypatch):
    import s3fs

    with pytest.raises(UserError, match="no published model"):
        load(f"{bucket}/nothing")
    with pytest.raises(UserError, match=r"s3://no-such-bucket-here/x: cannot be read or written"):
        publishing.publish(export, "s3://no-such-bucket-here/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError) as error:
        load(bucket)
    assert "cannot be read or written" in str(error.value)
    assert SECRET not in str(error.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_changed_object_is_noticed(export, bucket):
    import boto3

    publishing.publish(export, bucket)
    (key,) = [name for name in objects(bucket) if name.endswith("/model.ts")]
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"something else")
    with pytest.raises(UserError, match=r"model\.ts: 14 bytes, expected"):
        load(bucket)


def test_the_command_publishes_into_a_folder_and_the_cache_needs_no_network(export, delivered, tmp_path):
    url = f"file://{tmp_path}/shelf/small"
    done = command("publish.py", "small", url, home=delivered)
    assert done.returncode == 0, done.stderr
    pin = done.stdout.split()[-1]
    assert load(url, sha256=pin).sha256 == pin
    assert not list((tmp_path / "shelf").rglob("*.part"))
    shutil.rmtree(tmp_path / "shelf")
    assert load(url, sha256=pin).sha256 == pin, "a pinned version that was fetched before"
    with pytest.raises(UserError, match="no published model"):
        load(url)


def test_a_spoiled_export_is_not_published(export, tmp_path):
    (export / "model.ts").write_bytes(b"x")
    with pytest.raises(UserError, match="cut short or changed"):
        publishing.publish(export, f"file://{tmp_path}/shelf")
    assert not (tmp_path / "shelf").exists()


def test_a_place_that_holds_something_else_is_left_alone(export, tmp_path):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / INDEX).write_text('{"my": "file"}')
    with pytest.raises(UserError, match="not the index of an export; choose another place"):
        publishing.publish(export, f"file://{tmp_path}/shelf")
    (tmp_path / "shelf" / INDEX).write_text('{"at": "../../etc/"}')
    with pytest.raises(UserError, match="not the index of a published model"):
        load(f"file://{tmp_path}/shelf")


class Hub:
    """Stands for the Hugging Face Hub: repositories as folders, commits as numbered whole copies."""

    def __init__(self, root: Path):
        self.root = root

    def create_repo(self, repository, private, exist_ok):
        self.private = getattr(self, "private", bool(private))
        (self.root / repository / "0").mkdir(parents=True, exist_ok=exist_ok)

    def head(self, repository: str) -> Path:
        """Return the folder of the newest commit."""
        if not (self.root / repository).is_dir():
            raise FileNotFoundError(f"404 Client Error: https://hub.example/signed?token={SECRET}")
        return max((self.root / repository).iterdir(), key=lambda path: int(path.name))

    def repo_info(self, repository, revision=None):
        return SimpleNamespace(sha=revision or self.head(repository).name, private=self.private)

    def list_repo_files(self, repository, revision):
        return [path.name for path in (self.root / repository / revision).iterdir()]

    def hf_hub_download(self, repository, name, revision):
        return str(self.root / repository / revision / name)

    def create_commit(self, repository, operations, commit_message, parent_commit):
        assert commit_message.startswith("ser export ")
        assert parent_commit == self.head(repository).name
        folder = self.root / repository / str(int(parent_commit) + 1)
        shutil.copytree(self.head(repository), folder)
        for operation in operations:
            if type(operation).__name__ == "CommitOperationDelete":
                (folder / operation.path_in_repo).unlink()
            else:
                shutil.copy(operation.path_or_fileobj, folder / operation.path_in_repo)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    import huggingface_hub

    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


def test_the_hub_gets_one_commit_with_the_card_as_its_readme(export, hub):
    publishing.publish(export, "hf://me/small", private=True)
    assert hub.private
    folder = hub.head("me/small")
    assert {path.name for path in folder.iterdir()} == {"README.md"} | {path.name for path in export.iterdir()}
    assert (folder / "README.md").read_text().startswith("---\nlicense:")
    first = sha256_of(export / INDEX)
    assert load("hf://me/small").sha256 == first
    changed(export)
    index = json.loads((export / INDEX).read_text())
    del index["files"]["parity.json"]
    (export / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="holds another version"):
        publishing.publish(export, "hf://me/small")
    publishing.publish(export, "hf://me/small", overwrite=True)
    assert load("hf://me/small").index["run"] == "another"
    assert not (hub.head("me/small") / "parity.json").exists(), "what the version before had, and this one has not"
    assert load("hf://me/small", revision="1").sha256 == first


def test_a_repository_of_something_else_is_left_alone(export, hub):
    hub.create_repo("me/mine", private=False, exist_ok=True)
    (hub.head("me/mine") / "README.md").write_text("my own model")
    with pytest.raises(UserError, match=r"hf://me/mine: holds files of something else \(README.md\)"):
        publishing.publish(export, "hf://me/mine")
    assert (hub.head("me/mine") / "README.md").read_text() == "my own model"


def test_a_public_repository_is_not_taken_for_a_private_one(export, hub):
    publishing.publish(export, "hf://me/small")
    with pytest.raises(UserError, match="is public already"):
        publishing.publish(export, "hf://me/small", private=True)


def test_only_the_hub_can_be_told_who_may_read(export, tmp_path):
    with pytest.raises(UserError, match="--private is for hf://"):
        publishing.publish(export, f"file://{tmp_path}/shelf", private=True)


def test_what_the_hub_lacks_is_one_line(export, hub):
    with pytest.raises(UserError, match=r"^hf://me/none: cannot be read or written \(FileNotFoundError") as error:
        load("hf://me/none")
    assert SECRET not in str(error.value)
    with pytest.raises(UserError, match="expected hf://USER/REPOSITORY"):
        load("hf://none")


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("s3://key:sec/ret@bucket/x/", "s3://bucket/x"), ("https://a.example/m?X-Amz-Signature=1", "https://a.example/m"),
        ("hf://me/small", "hf://me/small"),
    ],
)  # fmt: skip
def test_addresses_are_shown_without_passwords(url, plain):
    assert publishing.shown(url) == plain


def test_an_address_with_credentials_or_without_a_scheme_is_refused(export, tmp_path):
    url = f"s3://AKIDEXAMPLE:{SECRET}/+@bucket/x"
    for use in (lambda: publishing.publish(export, url), lambda: load(url)):
        with pytest.raises(UserError, match="must not hold credentials") as error:
            use()
        assert SECRET not in str(error.value)
    with pytest.raises(UserError, match="expected an address such as"):
        publishing.publish(export, str(tmp_path / "shelf"))


def test_a_pinned_version_in_a_damaged_cache_is_fetched_again(export, tmp_path):
    url, pin = f"file://{tmp_path}/shelf", sha256_of(export / INDEX)
    publishing.publish(export, url)
    load(url, sha256=pin)
    for name in (INDEX, "model.ts"):
        (publishing.cache_folder() / pin / name).write_text("spoiled")
        assert load(url, sha256=pin).sha256 == pin
    plain = f"file://{export}"
    shutil.rmtree(publishing.cache_folder())
    assert load(plain, sha256=pin).sha256 == pin, "an export that was uploaded by hand"


def test_an_export_is_made_anew_where_the_run_was_scored_since(delivered, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "outputs").mkdir(parents=True)
    (home / "data").symlink_to(delivered / "data")
    run = Path(shutil.copytree(delivered / "outputs/small", home / "outputs/small"))
    monkeypatch.setenv("SER_HOME", str(home))
    monkeypatch.setattr(exporting, "export", lambda name: ("made anew", {}))
    assert exporting.exported("small") == run / "export"
    later = (run / "export" / INDEX).stat().st_mtime + 5
    path = next(run.glob("eval/*/metrics.json"))
    pooled = home / "outputs/demo_ecapa-cv-s1-abc/eval/demo-kfold5-test/metrics.json"
    pooled.parent.mkdir(parents=True)
    for folds in ([{"run": "another"}], [{"run": "small"}]):
        write_json(pooled, read_json(path) | {"folds": folds})
        os.utime(pooled, (later, later))
        assert (exporting.exported("small") == "made anew") is (folds == [{"run": "small"}])
    for foreign in ("[]", "{", '{"folds": 1}'):
        pooled.write_text(foreign)
        os.utime(pooled, (later, later))
        assert exporting.exported("small") == run / "export"
    os.utime(path, (later, later))
    assert exporting.exported("small") == "made anew"


def test_another_version_takes_the_place_of_one_in_a_folder(export, tmp_path):
    url = f"file://{tmp_path}/shelf"
    publishing.publish(export, url)
    first = (tmp_path / "shelf" / INDEX).read_text()
    write_json(export / INDEX, read_json(export / INDEX) | {"run": "another"})
    with pytest.raises(UserError, match="overwrite"):
        publishing.publish(export, url)
    publishing.publish(export, url, overwrite=True)
    assert (tmp_path / "shelf" / INDEX).read_text() != first
    assert not list((tmp_path / "shelf").rglob("*.part"))


def test_an_export_of_an_unfinished_run_is_not_published(export, tmp_path):
    index = read_json(export / INDEX)
    write_json(export / INDEX, index | {"tags": [*index["tags"], "unfinished"]})
    with pytest.raises(UserError, match="its run is not finished; go on with: just resume demo_ecapa-s1-"):
        publishing.publish(export, f"file://{tmp_path}/shelf")
    assert not (tmp_path / "shelf").exists()


def test_an_empty_pointer_is_not_taken_for_a_free_place(export, tmp_path):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / INDEX).write_text("")
    with pytest.raises(UserError, match="not the index of an export; choose another place"):
        publishing.publish(export, f"file://{tmp_path}/shelf")


def test_publishing_what_is_not_there_is_one_line(tmp_path):
    assert "no run of this name" in one_error_line(command("publish.py", "nothing", "file:///tmp/x", home=tmp_path))
    assert (PROJECT / "tools/publish.py").is_file()
