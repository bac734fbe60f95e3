"""Training that begins with another run: what it takes over, and what it must not come to know."""

import pytest
import torch
from conftest import StopAfter

from ser import checkpoints, config, cross_corpus, initial_weights, runs, splits, training
from ser.cross_corpus import cross
from ser.cross_validation import cross_validate
from ser.errors import Interrupted, UserError
from ser.files import run_folder
from ser.initial_weights import start_tags
from ser.run_evaluation import evaluate
from ser.training_setup import set_up

SMALL = ["track/wandb = 'off'", "train/epochs = 1", "train/batch_size = 16"]
ECAPA = [*SMALL, "ecapa/channels = 16", "train/crop_seconds = 0.5"]
TUNED = [*SMALL, "attn/hidden = 8", "tune/layers = 1"]


def make(experiment: str, *overrides: str) -> str:
    built, run = runs.create(config.load(experiment, overrides))
    runs.train(built, run, progress=False)
    return run.folder.name


def begun(experiment: str, *overrides: str) -> dict[str, torch.Tensor]:
    """Return the weights that training would begin with."""
    built, _ = runs.create(config.load(experiment, overrides))
    return {name: value.clone() for name, value in set_up(built).model.state_dict().items()}


def interrupt(monkeypatch, experiment: str, *overrides: str) -> str:
    """Train for one step."""
    built, run = runs.create(config.load(experiment, overrides))
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_requests", lambda: StopAfter(1))
        with pytest.raises(Interrupted):
            runs.train(built, run, progress=False)
    return run.folder.name


def best(name: str) -> dict:
    return checkpoints.load(run_folder(name) / "checkpoints/best.pt")


def test_all_but_the_last_layer_and_the_corpus_statistics_is_taken_over(trained_home):
    first = make("crema_d_ecapa", *ECAPA)
    weights, fresh = best(first)["model"], begun("ravdess_ecapa", *ECAPA)
    taken = begun("ravdess_ecapa", *ECAPA, f"train/start = '{first}'")
    assert taken.keys() == fresh.keys()
    own = {name for name in fresh if name.startswith("norm.") or name in ("head.3.weight", "head.3.bias")}
    assert {name for name in fresh if torch.equal(taken[name], fresh[name])} >= own
    for name in fresh.keys() - own:
        torch.testing.assert_close(taken[name], weights[name], rtol=0, atol=0)


def test_figures_say_on_what_a_run_was_begun_and_that_corpus_is_not_scored(trained_home):
    first = make("crema_d_ecapa", *ECAPA)
    second = make("ravdess_ecapa", *ECAPA, f"train/start = '{first}'")
    _, metrics = evaluate(second, progress=False)
    assert "begun-on-crema_d" in metrics["tags"]
    assert metrics["trained_on"] == f"ravdess emobox6 fold 1, begun with {first}"
    assert start_tags(best(second)["state"]["start"]) == metrics["tags"]
    assert best(second)["state"]["start"]["corpora"] == ["crema_d"]
    with pytest.raises(UserError, match="was trained on crema_d, too"):
        cross(second, "crema_d", progress=False)
    with pytest.raises(UserError, match="was trained on crema_d, too, and may know speakers"):
        begun("crema_d_ecapa", *ECAPA, f"train/start = '{second}'")  # not in a roundabout way, either


def test_another_split_of_the_corpus_is_refused_and_the_same_is_not(trained_home):
    first = make("ravdess_ecapa", *ECAPA)
    with pytest.raises(UserError, match="may know speakers that ravdess emobox6 fold 2 validates or tests on"):
        begun("ravdess_ecapa", *ECAPA, f"train/start = '{first}'", "split/fold = 2")
    second = make("ravdess_ecapa", *ECAPA, f"train/start = '{first}'")
    assert evaluate(second, progress=False)[1]["tags"] == []
    taken = begun("ravdess_ecapa", *ECAPA, f"train/start = '{first}'")
    assert torch.equal(taken["head.3.weight"], best(first)["model"]["head.3.weight"])  # the labels are the same


def test_recordings_that_would_be_scored_are_known_by_their_samples_in_another_corpus(trained_home, monkeypatch):
    first = make("crema_d_ecapa", *ECAPA)
    experiment, _ = runs.create(config.load("ravdess_ecapa", ECAPA))
    heard, scored = runs.load_trained(first).experiment.trained_clips[0], experiment.protocol.part("test")[0]
    known = {"crema_d": {heard.clip: "same"}, "ravdess": {scored.clip: "same"}}
    monkeypatch.setattr(splits, "read_sound_hashes", lambda corpus: known.get(corpus, {}))
    twice = f"train/start on ravdess .*: {heard.clip} .what {first} was trained on. and {scored.clip} .test"
    with pytest.raises(UserError, match=twice):
        begun("ravdess_ecapa", *ECAPA, f"train/start = '{first}'")
    with pytest.raises(UserError, match=rf"the same recording in two parts: {heard.clip} .training. and {scored.clip}"):
        cross_corpus.cross(first, "ravdess", progress=False)


def test_an_encoder_that_was_tuned_goes_on_from_there(encoded, trained_home):
    first = make("crema_d_hubert_attn_finetune_tiny", *TUNED)
    weights = best(first)["model"]
    taken = begun("ravdess_hubert_attn_finetune_tiny", *TUNED, "tune/layers = 2", f"train/start = '{first}'")
    fresh = begun("ravdess_hubert_attn_finetune_tiny", *TUNED, "tune/layers = 2")
    tuned = [name for name in weights if name.startswith("encoder.encoder.")]
    assert tuned
    for name in tuned:
        assert torch.equal(taken[name], weights[name])
        assert not torch.equal(taken[name], fresh[name])
    lower = [name for name in fresh if ".layers.2." in name]
    assert lower
    assert all(torch.equal(taken[name], fresh[name]) for name in lower)
    with pytest.raises(UserError, match="trained parts of the encoder that this run keeps frozen"):
        begun("ravdess_hubert_attn_finetune_tiny", *TUNED, "tune/layers = 0", f"train/start = '{first}'")


def test_a_resumed_run_still_says_on_what_it_was_begun(trained_home, monkeypatch):
    first = make("crema_d_ecapa", *ECAPA)
    settings = [*ECAPA, f"train/start = '{first}'", "train/epochs = 2"]
    interrupt(monkeypatch, "ravdess_ecapa", *settings)
    straight = best(make("ravdess_ecapa", *settings))
    assert straight["state"]["start"]["run"] == first


def test_a_run_may_be_named_by_its_path(trained_home, tmp_path):
    first = make("crema_d_ecapa", *ECAPA)
    away = run_folder(first).rename(tmp_path / "away")
    assert begun("ravdess_ecapa", *ECAPA, f"train/start = '{away}'")
    with pytest.raises(UserError, match=r"away/checkpoints/best.pt: weights of another model"):
        begun("ravdess_ecapa", *ECAPA, "ecapa/channels = 24", f"train/start = '{away}'")
    (away / "checkpoints/best.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"best.pt: not a whole checkpoint"):
        begun("ravdess_ecapa", *ECAPA, f"train/start = '{away}'")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last", "name the run"),
        ("nothing", "nothing: no run of this name"),
    ],
)
def test_a_run_that_is_none_is_refused(trained_home, name, message):
    make("crema_d_ecapa", *ECAPA)
    with pytest.raises(UserError, match=message):
        begun("ravdess_ecapa", *ECAPA, f"train/start = '{name}'")


def test_another_network_and_an_unfinished_run_are_refused(encoded, trained_home, monkeypatch):
    first = make("crema_d_ecapa", *ECAPA)
    with pytest.raises(UserError, match="weights of another model: differs in shape"):
        begun("ravdess_ecapa", *ECAPA, "ecapa/channels = 24", f"train/start = '{first}'")
    with pytest.raises(UserError, match="has the encoder None, this run"):
        begun("ravdess_hubert_attn_finetune_tiny", *TUNED, f"train/start = '{first}'")
    with pytest.raises(UserError, match="means nothing to a solver"):
        begun("ravdess_stats_probe", f"train/start = '{first}'")
    unfinished = interrupt(monkeypatch, "crema_d_ecapa", *ECAPA, "train/epochs = 3")
    with pytest.raises(UserError, match="is not finished; go on with: just resume"):
        begun("ravdess_ecapa", *ECAPA, f"train/start = '{unfinished}'")


def test_another_corpus_counts_without_names_of_speakers_too(trained_home):
    first = make("crema_d_ecapa", *ECAPA, "data/extra = ['demo']")
    path = run_folder(first) / "checkpoints/best.pt"
    content = checkpoints.load(path)
    content["train_speakers"] = [name for name in content["train_speakers"] if ":" not in name]  # as of unnamed ones
    checkpoints.save(path, content)
    with pytest.raises(UserError, match="was trained on demo, too"):
        begun("demo_ecapa", *ECAPA, f"train/start = '{first}'")


def test_a_probe_that_has_heard_validation_is_no_start_on_the_same_split(encoded, trained_home):
    first = make("ravdess_stats_probe", "track/wandb = 'off'", "stats/refit = True")
    with pytest.raises(UserError, match="may know speakers"):
        begun("ravdess_stats_probe", "stats/solver = 'loop'", "stats/refit = False", f"train/start = '{first}'")


def test_a_run_that_has_heard_validation_is_no_start_where_speakers_are_shared_either(trained_home):
    fixed = [*ECAPA, "train/keep = 'last'"]
    plain, both = make("demo_ecapa", *fixed), make("demo_ecapa", *fixed, "train/with_validation = True")
    protocol = config.build(config.load("demo_ecapa", fixed)).protocol
    object.__setattr__(protocol.split, "speaker_independent", False)
    assert initial_weights.read_start(plain, protocol).facts["run"] == plain
    with pytest.raises(UserError, match="may know speakers"):
        initial_weights.read_start(both, protocol)


def test_a_start_may_have_a_start_on_the_same_split(trained_home):
    first = make("ravdess_ecapa", *ECAPA)
    second = make("ravdess_ecapa", *ECAPA, f"train/start = '{first}'")
    assert begun("ravdess_ecapa", *ECAPA, f"train/start = '{second}'")


def test_folds_that_cannot_all_begin_are_refused_before_the_first_is_trained(trained_home):
    first = make("ravdess_ecapa", *ECAPA)
    before = sorted((trained_home / "outputs").iterdir())
    with pytest.raises(UserError, match="fold 2 validates or tests on"):
        cross_validate("ravdess_ecapa", [*ECAPA, f"train/start = '{first}'"], progress=False)
    assert sorted((trained_home / "outputs").iterdir()) == before
