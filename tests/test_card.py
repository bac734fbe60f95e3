"""The model card: what the hub reads, and what a reader must know."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import PROJECT

from ser import card, config, corpora, runs


@pytest.fixture(scope="module")
def text(delivered) -> str:
    return (delivered / "outputs/small/export/model_card.md").read_text()


def test_the_hub_reads_its_front_matter(text, delivered):
    from huggingface_hub import ModelCard

    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "ser-toolkit", "audio-classification")
    assert "speech-emotion-recognition" in data.tags
    (uar,) = [result for result in data.eval_results if result.metric_type == "uar"]
    assert uar.dataset_type == "demo"
    assert f"{uar.metric_value:.3f}" in text
    assert uar.dataset_name.endswith("[speaker-normalised]"), "whoever reads only the hub's table is told, too"


def test_it_says_protocol_figures_limits_and_how_to_cite(text, delivered, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(delivered))
    experiment, _ = runs.reopen("small")
    for words in (
        experiment.protocol.split.sha256, "speaker-normalised", "Intervals are 95 %", "## Subgroups", "## Calibration",
        "## Robustness", "Not measured", "It does not tell what a person feels", "AI Act", "## How to cite",
        "## What may have heard the test before", "model_int8.ts", "scored on", "parameters were trained",
    ):  # fmt: skip
        assert words in text, words
    assert " 0 parameters" not in text


def test_licences_of_the_corpora_are_those_of_their_readmes():
    for corpus in ("ravdess", "crema_d", "emodb"):
        said = corpora.readme_entry(corpus, "Licence:") or corpora.readme_entry(corpus, "Terms:")
        assert said
        assert said in (PROJECT / f"data/{corpus}/README.md").read_text()
        assert said in corpora.licence(corpus)
    assert "NC-SA" in corpora.readme_entry("ravdess", "Licence:")
    assert corpora.licence("custom") == "custom: licence not known here; ask who made the recordings"


def test_robustness_stands_in_it_where_it_was_measured_of_these_weights(delivered, tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "data").symlink_to(delivered / "data")
    run = Path(shutil.copytree(delivered / "outputs/small", tmp_path / "outputs/small"))
    monkeypatch.setenv("SER_HOME", str(tmp_path))
    model = runs.load_trained("small")
    measured = {"kind": "white", "value": 20.0, "uar": 0.5, "uar_low": 0.4, "uar_high": 0.6, "same_answers": 0.75}
    for state, shown in ((model.checkpoint["state"], True), ({"epoch": 99, "step": 1}, False)):
        facts = {"checkpoint": {name: state[name] for name in ("epoch", "step")}, "rows": [measured]}
        facts["clips_sha256"] = json.loads((next(run.glob("eval/*")) / "metrics.json").read_text())["clips_sha256"]
        (next(run.glob("eval/*")) / "robustness.json").write_text(json.dumps(facts))
        text = card.model_card(model, {"formats": {}, "left_out": {}}, 7)
        assert ("| white | 20 | 0.500 [0.400, 0.600] | 0.75 |" in text) is shown
        assert ("Not measured" in text) is not shown


def test_it_says_what_the_weights_have_heard(trained_home):
    small = ["ecapa/channels = 16", "train/epochs = 1", "train/crop_seconds = 0.5", "track/wandb = 'off'"]

    def told(experiment: str, *overrides: str) -> str:
        built, run = runs.create(config.load(experiment, [*small, *overrides]))
        runs.train(built, run, progress=False)
        text = card.model_card(runs.load_trained(run.folder.name), {"formats": {}, "left_out": {}}, 7)
        return text.partition("## What may have heard the test before")[2].partition("##")[0]

    both = ["train/keep = 'last'", "train/with_validation = True"]
    assert "at random and were trained on the training part and the validation part." in told("demo_ecapa", *both)
    name = runs.create(config.load("demo_ecapa", [*small, *both]))[1].folder.name
    begun = told("ravdess_ecapa", f"train/start = '{name}'")
    assert f"Training began with the weights of {name}, which was trained on demo." in begun
    assert "at random" not in begun
    assert "and all of demo." in told("ravdess_ecapa", "data/extra = ['demo']")


def test_a_run_that_is_not_finished_says_so(delivered, monkeypatch):
    monkeypatch.setenv("SER_HOME", str(delivered))
    trained = dataclasses.replace(runs.load_trained("small"), finished=False)
    text = card.model_card(trained, {"formats": {}, "left_out": {}}, 7)
    assert "Tags of every figure: `speaker-normalised`, `unfinished`." in text


def test_ravdess_is_not_for_commercial_use(encoded, trained_home):
    from ser import config

    built, run = runs.create(config.load("ravdess_stats_probe", ["track/wandb = 'off'", "stats/strengths = [0.01]"]))
    runs.train(built, run, progress=False)
    text = card.model_card(
        runs.load_trained(run.folder.name), {"formats": {}, "left_out": {"model.onnx": "no reason"}}, 7
    )
    assert 'license: "cc-by-nc-sa-4.0"' in text
    assert "forbids commercial use" in text
    assert "openai/whisper-tiny.en, revision main" in text
    assert re.search(r"revision main, weights SHA-256 `[0-9a-f]{64}`", text)
    assert "They also hold those of the encoder openai/whisper-tiny.en," in text
    assert "The encoder openai/whisper-tiny.en was trained by others" in text
    assert "Not scored yet" in text
    assert "model.onnx is left out: no reason." in text


def test_a_bar_in_a_cell_does_not_break_a_table():
    from ser.wording import markdown_table

    assert markdown_table([("group", "UAR"), ("a|b", "0.5")]) == ["| group | UAR |", "|---|---|", r"| a\|b | 0.5 |"]
