"""Fixtures of all tests: a home of their own, a small RAVDESS-like corpus, the real commands."""

import functools
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))

# Two workers of pytest share two cores; more threads each would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # one GPU is too few for two processes, and rounds otherwise each time
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"  # what is not at hand is absent at once, not after five attempts
os.environ["WANDB_SILENT"] = "true"
os.fsync = lambda _: None  # no test outlives a power cut, and the disk keeps both workers waiting


@pytest.fixture(autouse=True)
def _no_lazy_modules():
    """Drop SpeechBrain's placeholders of modules that are not installed: hypothesis looks into every module."""
    for name, module in list(sys.modules.items()):
        if type(module).__name__ in ("LazyModule", "DeprecatedModuleRedirect"):
            del sys.modules[name]


# What takes longest begins, so that both workers end together; what shares the export of ``delivered`` stays on one.
LONGEST = (
    "test_exporting", "test_processes", "test_after_training", "test_extraction", "test_training", "test_runs",
    "test_encoder_runs", "test_encoders", "test_ablating", "test_crash_test", "test_packaging", "test_justfile",
    "test_tracking", "test_initial_weights", "test_plan_runner", "test_downloading", "test_stats_probe", "test_custom",
)  # fmt: skip
DELIVERED = (
    "test_exporting",
    "test_inference",
    "test_predict_command",
    "test_publishing",
    "test_card",
    "test_packaging",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Put the files that take longest first."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """Never look through again what the libraries have made."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each worker whole files, those of ``DELIVERED`` to one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFixture(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "delivered" if Path(file).stem in DELIVERED else file

    return ByFixture(config, log)


@pytest.fixture(autouse=True, scope="session")
def _no_picture_is_drawn_twice():
    """Write the first picture of a name again where another is to be drawn: each would take a sixth of a second."""
    from ser import environment, plots
    from ser.files import write_bytes

    draw, drawn = plots.save, {}

    @functools.wraps(draw)
    def save(drawing, path):
        if path.name not in drawn:
            draw(drawing, path)
            drawn[path.name] = path.read_bytes()
        else:
            write_bytes(path, drawn[path.name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", save)
        patch.setattr(environment, "git", functools.cache(environment.git))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_script_is_loaded_twice():
    """Keep exported models that were loaded, by what is in the file: each would take half a second again."""
    from ser import loading
    from ser.files import sha256_of

    load, kept = loading.script, {}

    def script(path, device):
        key = sha256_of(path), device
        if key not in kept:
            kept[key] = load(path, device)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "script", script)
        yield


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Return an empty folder that holds this test's ``data/`` and ``outputs/``."""
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Return a home in which small RAVDESS-, CREMA-D- and demo-like corpora are prepared and extracted."""
    from corpus_factory import prepare_corpus

    from ser import config
    from ser.extraction import extract
    from ser.metadata import read_table

    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(folder))
        for corpus in ("ravdess", "crema_d", "demo"):
            prepare_corpus(folder, corpus)
            extract(read_table(corpus), config.load_features("logmel80"), progress=False)
    return folder


@pytest.fixture(scope="session")
def encoded(prepared) -> Path:
    """Return the prepared home with statistics of a random Whisper for two of its corpora."""
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from ser import config
    from ser.extraction import extract
    from ser.metadata import read_table

    torch.manual_seed(0)
    shape = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 256}
    WhisperEncoder(WhisperConfig(**shape)).save_pretrained(prepared / "data/encoders/openai/whisper-tiny.en")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(prepared))
        for corpus in ("ravdess", "crema_d"):
            extract(read_table(corpus), config.load_features("whisper_tiny_en"), progress=False)
    return prepared


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> dict:
    """Return a small pretrained encoder of each family, by name."""
    from encoder_factory import STATES, WHISPER_STATES, WHISPER_WIDTH, WIDTH, save, wave_model, whisper_model

    from ser.encoders import Pretrained

    folder = tmp_path_factory.mktemp("encoders")
    made = {"whisper": Pretrained(str(save(whisper_model(), folder / "whisper")), WHISPER_WIDTH, WHISPER_STATES)}
    for family, norm in (("hubert", "layer"), ("wavlm", "layer"), ("wav2vec2", "group")):
        made[family] = Pretrained(str(save(wave_model(family, norm), folder / family)), WIDTH, STATES)
    return made


def compare_unoptimised(patch: pytest.MonkeyPatch) -> None:
    """Compare exports without TorchScript's optimiser, which would compile anew for each shape."""
    import torch

    from ser import exporting, parity

    def plain(function):
        def run(*arguments, **options):
            with torch.jit.optimized_execution(False):
                return function(*arguments, **options)

        return run

    for name in ("compare", "compare_known", "variant_figures"):
        for module in (exporting, parity):
            patch.setattr(module, name, plain(getattr(parity, name)))


@pytest.fixture(scope="session")
def delivered(prepared, tmp_path_factory) -> Path:
    """Return a home with a small run that normalises by speaker, scored on validation and exported."""
    from ser import config, exporting, parity, runs
    from ser.run_evaluation import evaluate

    home = tmp_path_factory.mktemp("delivered")
    (home / "data").symlink_to(prepared / "data")
    settings = ["track/wandb = 'off'", "train/epochs = 1", "ecapa/channels = 64", "ecapa/normalisation = 'speaker'"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_HOME", str(home))
        experiment, run = runs.create(config.load("demo_ecapa", settings))
        runs.train(experiment, run, progress=False)
        evaluate(run.folder.name, "val", progress=False)
        quick = {name: exporting.FORMATS[name] for name in ("model.ts", "model_int8.ts")}
        patch.setattr(exporting, "FORMATS", quick)
        patch.setattr(parity, "ALONE", (1.0,))
        patch.setattr(parity, "TOGETHER", ((1.1, 0.5),))
        compare_unoptimised(patch)
        exporting.export(run.folder.name, progress=False)
    run.folder.rename(home / "outputs/small")
    return home


@pytest.fixture
def trained_home(prepared, tmp_path, monkeypatch) -> Path:
    """Return a home that shares the prepared data and has outputs of its own."""
    (tmp_path / "data").symlink_to(prepared / "data")
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def heard(monkeypatch) -> set[str]:
    """Return the names of the clips that are read from now on, from a store or as sound."""
    from ser import audio
    from ser.features import FeatureStore

    stored, sound, names = FeatureStore.read, audio.read, set()
    monkeypatch.setattr(FeatureStore, "read", lambda self, clip: names.add(clip.clip) or stored(self, clip))
    monkeypatch.setattr(audio, "read", lambda path: names.add(path.stem) or sound(path))
    return names


def check_test_part_untouched(experiment, run, heard: set[str]) -> None:
    """See that training and validation were read, the test part was not, and nothing of it was scored."""
    parts = {part: {clip.clip for clip in clips} for part, clips in experiment.protocol.members.items()}
    assert parts["train"] | parts["val"] <= heard
    assert parts["test"]
    assert not parts["test"] & heard
    assert not (run.folder / "scorings.jsonl").exists()
    assert not (run.folder / "eval").exists()


@functools.cache
def warm_start() -> subprocess.Popen:
    """Return what runs the commands of this worker's tests, see ``warm_start.py``."""
    script = str(PROJECT / "tests/warm_start.py")
    return subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def asked(**job: object) -> int | None:
    """Give ``warm_start.py`` a job, and return the number that it answers."""
    print(json.dumps(job), file=warm_start().stdin, flush=True)
    answer = warm_start().stdout.readline().strip()
    assert answer, "tests/warm_start.py has ended"
    assert answer != str(-signal.SIGALRM), f"{job} took more than five minutes"
    return None if answer == "None" else int(answer)


def command(*arguments: object, home: Path | None = None, ranks: int = 1) -> subprocess.CompletedProcess:
    """Run ``python tools/...`` with a home of its own, or another script, and return what it printed.

    Its process, or those of several ranks, are forks of one that has imported torch. What depends on how a process
    starts is to be tested without.
    """
    env = dict(os.environ) | ({"SER_HOME": str(home)} if home else {})
    tool, *rest = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        argv, where = [str(PROJECT / "tools" / tool), *rest], os.getcwd()
        status = asked(argv=argv, env=env, cwd=where, out=str(out), err=str(err), ranks=ranks, beside=False)
        return subprocess.CompletedProcess(argv, status, out.read_text(), err.read_text())


class Beside:
    """A command like that of ``command`` that runs while the test goes on: what tests need of ``subprocess.Popen``."""

    def __init__(self, *arguments: object):
        self.folder = tempfile.TemporaryDirectory()  # gone when this is
        self.out, self.err = (Path(self.folder.name) / name for name in ("out", "err"))
        tool, *rest = [str(argument) for argument in arguments]
        argv, where = [str(PROJECT / "tools" / tool), *rest], os.getcwd()
        self.returncode: int | None = None
        self.pid = asked(
            argv=argv, env=dict(os.environ), cwd=where, out=str(self.out), err=str(self.err), ranks=1, beside=True
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = asked(ended=self.pid)
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, "the command does not end"
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def command_on_a_full_disk(size: int, *arguments: object, home: Path) -> subprocess.CompletedProcess:
    """Run ``python tools/...`` where a file may grow to ``size`` bytes: the system then refuses as with a full disk."""
    tool, *rest = [str(argument) for argument in arguments]
    return subprocess.run(
        [sys.executable, str(PROJECT / "tools" / tool), *rest], env=dict(os.environ) | {"SER_HOME": str(home)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def run_here(monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs a tool like ``command``, but in this process: no waiting for imports.

    A traceback of the tool becomes one of the test.
    """

    def run(tool: str, *arguments: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(PROJECT / "tools" / tool), run_name="__main__")
        return subprocess.CompletedProcess(sys.argv, ended.value.code or 0, *capfd.readouterr())

    return run


def one_error_line(done: subprocess.CompletedProcess) -> str:
    """Return the one line of a user's mistake, seen to be alone and to come with exit status 2."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


class StopAfter:
    """A stop request that comes after so many steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    @property
    def signal(self) -> int:
        self.steps -= 1
        return 2 if self.steps < 0 else 0

    status = 130
