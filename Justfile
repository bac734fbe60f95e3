# The interface of a researcher. Variables come before the recipe: just part=val eval last
# gin overrides and a tool's own options come after it:            just train ravdess_ecapa 'train/epochs = 5'

set positional-arguments
set shell := ["bash", "-euo", "pipefail", "-c"]

# raw recordings of a corpus; remembered after the first time
export raw := ""
# 1: go on although official clips are missing
allow_missing := ""
# part that `eval` scores: test or val
part := "test"
# label source that `eval` and `cross` score against: intended, voice, multimodal; the run's own, or intended, without it
labels := ""
# clips of each speaker that `eval` normalises by, for models that do; all without it
speaker_clips := ""
# processes that share the work of `extract`, `train`, `resume` and each training of `cv` and `ablate`; with GPUs, one each
gpus := "1"
# trainings of `cv` and `ablate` at the same time
jobs := "1"
# seeds of each variant of `ablate`
seeds := "3"
# 1: `eval` also speakers that the model was trained on; its figures are tagged
seen := ""
# 1: `cross` normalises by the other corpus's statistics, without its labels; its figures are tagged
adapt := ""
# 1: `report` holds the recordings of the worst mistakes, too
sound := ""
# what `ensemble` averages, probabilities or logits, and its weights, uniform or fitted on validation
average := "probabilities"
weights := "uniform"
# 1: `publish` replaces another version
overwrite := ""
# what calm means to a corpus or model without it: neutral or leave_out
calm := "neutral"

# those of them that were set, for `_takes`
given := given_data + given_work + given_scoring + given_members + given_delivery
given_data := (if raw == "" { "" } else { "raw " }) + (if allow_missing == "" { "" } else { "allow_missing " })
given_work := (if gpus == "1" { "" } else { "gpus " }) + (if jobs == "1" { "" } else { "jobs " }) + (if seeds == "3" { "" } else { "seeds " })
given_scoring := (if part == "test" { "" } else { "part " }) + (if labels == "" { "" } else { "labels " }) + (if speaker_clips == "" { "" } else { "speaker_clips " }) + (if seen == "" { "" } else { "seen " })
given_members := (if calm == "neutral" { "" } else { "calm " }) + (if adapt == "" { "" } else { "adapt " }) + (if average == "probabilities" { "" } else { "average " }) + (if weights == "uniform" { "" } else { "weights " })
given_delivery := (if sound == "" { "" } else { "sound " }) + (if overwrite == "" { "" } else { "overwrite " })

# in quotes, for a path may hold anything
just := quote(just_executable())
this := quote(justfile())
root := quote(justfile_directory())
bin := quote(justfile_directory() / ".venv/bin")
tools := quote(justfile_directory() / "tools")
launch := if gpus == "1" { "" } else { tools + "/launch.py " + quote(gpus) }
seen_flag := if seen == "1" { "--seen" } else if seen == "" { "" } else { error("seen is '" + seen + "'; expected 1, or nothing") }
sound_flag := if sound == "1" { "--sound" } else if sound == "" { "" } else { error("sound is '" + sound + "'; expected 1, or nothing") }
adapt_flag := if adapt == "1" { "--adapt" } else if adapt == "" { "" } else { error("adapt is '" + adapt + "'; expected 1, or nothing") }
overwrite_flag := if overwrite == "1" { "--overwrite" } else if overwrite == "" { "" } else { error("overwrite is '" + overwrite + "'; expected 1, or nothing") }
speaker_clips_flag := if speaker_clips == "" { "" } else { "--speaker-clips " + quote(speaker_clips) }
missing_flag := if allow_missing == "1" { "--allow-missing" } else if allow_missing == "" { "" } else { error("allow_missing is '" + allow_missing + "'; expected 1, or nothing") }

# list the recipes
[private]
default:
    @{{ just }} --justfile {{ this }} --list --unsorted

# install everything into .venv, pinned; the other recipes do it on first use
[group('setup')]
setup:
    @rm -f {{ root }}/.venv/installed
    @{{ just }} --justfile {{ this }} _install

[private]
_install:
    #!/usr/bin/env bash
    set -euo pipefail
    cd {{ root }}
    # The stamp holds what was installed from; a change of either file installs again.
    wanted=$(cat setup.py constraints.txt | cksum)
    [ "$(cat .venv/installed 2>/dev/null || true)" = "$wanted" ] && exit 0
    [ -x .venv/bin/python ] || python3 -m venv .venv
    echo "installing into .venv (a few minutes on the first use)" >&2
    .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
    echo "$wanted" > .venv/installed

# Refuse variables that a recipe would not look at.
[no-cd]
[no-exit-message]
[private]
_takes RECIPE *NAMES: _install
    @for name in {{ given }}; do [[ " $* " == *" $name "* ]] || { takes=$(printf ' %s=' "${@:2}"); echo "error: $name= means nothing to $1, which takes${takes/ =/ no variable}" >&2; exit 2; }; done

# versions, devices, corpora found, what to do next
[group('setup')]
[no-cd]
[no-exit-message]
doctor: (_takes 'doctor')
    @{{ bin }}/ser doctor

# all phases on the built-in corpus: a few minutes on two CPU cores
[group('the whole job')]
[no-cd]
[no-exit-message]
demo: (_takes 'demo')
    @{{ tools }}/demo.sh {{ just }} {{ this }}

# the best model of ravdess or crema_d so far, from raw recordings to figures, report and export: just raw=PATH results ravdess
[group('the whole job')]
[no-cd]
[no-exit-message]
results CORPUS: (_takes 'results' 'raw' 'allow_missing' 'jobs' 'gpus')
    @{{ tools }}/results.sh {{ just }} {{ this }} "$1" {{ quote('jobs=' + jobs) }} {{ quote('gpus=' + gpus) }} ${raw:+"raw=$raw"} {{ if allow_missing == "1" { "allow_missing=1" } else { "" } }}

# everything at full size on a GPU machine, unattended and resumable: just plan --list, just plan --rehearse, just plan
[group('the whole job')]
[no-cd]
[no-exit-message]
plan *OPTIONS: (_takes 'plan' 'gpus' 'jobs' 'allow_missing' 'raw')
    @{{ bin }}/python {{ tools }}/plan.py {{ just }} {{ this }} --gpus {{ quote(gpus) }} --jobs {{ quote(jobs) }} {{ missing_flag }} "$@"

# fetch official recordings, resumable: crema_d, ravdess, emodb
[group('1 data')]
[no-cd]
[no-exit-message]
download CORPUS *OPTIONS: (_takes 'download')
    @{{ bin }}/python {{ tools }}/download.py "$@"

# see that raw recordings are whole: just raw=PATH verify ravdess
[group('1 data')]
[no-cd]
[no-exit-message]
verify CORPUS: (_takes 'verify' 'raw' 'allow_missing')
    @{{ bin }}/python {{ tools }}/verify_raw.py "$1" ${raw:+--raw "$raw"} {{ missing_flag }}

# build data/CORPUS/metadata.csv
[group('1 data')]
[no-cd]
[no-exit-message]
metadata CORPUS: (_takes 'metadata' 'raw' 'allow_missing')
    @{{ bin }}/python {{ tools }}/build_csv.py "$1" ${raw:+--raw "$raw"} {{ missing_flag }}

# write data/CORPUS/splits/SCHEME.csv; all schemes without one
[group('1 data')]
[no-cd]
[no-exit-message]
split CORPUS *SCHEME: (_takes 'split' 'raw' 'allow_missing')
    @{{ bin }}/python {{ tools }}/make_split.py "$@"

# clips by class, part, sex and speaker: table, picture, class weights: just histogram crema_d 'labels/source = "voice"'
[group('1 data')]
[no-cd]
[no-exit-message]
histogram CORPUS *OVERRIDES: (_takes 'histogram' 'raw' 'allow_missing')
    @{{ bin }}/python {{ tools }}/class_hist.py "$@"

# verify, metadata, all splits and histogram: just raw=PATH prepare ravdess
[group('1 data')]
[no-cd]
[no-exit-message]
prepare CORPUS: (verify CORPUS) (metadata CORPUS) (split CORPUS) (histogram CORPUS)

# features of gin/features/FEATURES.gin, or those of an experiment, into the store; resumes: just gpus=2 extract ravdess hubert_large
[group('2 features')]
[no-cd]
[no-exit-message]
extract CORPUS FEATURES *OVERRIDES: (_takes 'extract' 'gpus')
    @{{ bin }}/python {{ launch }} {{ tools }}/extract.py "$@"

# compare the layers of an encoder by a linear probe, on the training part alone: just probe ravdess hubert_large
[group('2 features')]
[no-cd]
[no-exit-message]
probe CORPUS FEATURES *OVERRIDES: (_takes 'probe')
    @{{ bin }}/python {{ tools }}/probe.py "$@"

# settings, wiring, defaults and unused values of an experiment; without one, the experiments that there are
[group('3-5 training')]
[no-cd]
[no-exit-message]
show *EXP_OVERRIDES: (_takes 'show')
    @{{ bin }}/python {{ tools }}/train.py --show "$@"

# 50 steps with loss, gradient norms, shapes and dtypes; keeps nothing
[group('3-5 training')]
[no-cd]
[no-exit-message]
dry-run EXP *OVERRIDES: (_takes 'dry-run')
    @{{ bin }}/python {{ tools }}/train.py --dry-run "$@"

# train gin/exp/EXP.gin: just train ravdess_ecapa 'train/epochs = 5'
[group('3-5 training')]
[no-cd]
[no-exit-message]
train EXP *OVERRIDES: (_takes 'train' 'gpus')
    @{{ bin }}/python {{ launch }} {{ tools }}/train.py "$@"

# go on with an interrupted run
[group('3-5 training')]
[no-cd]
[no-exit-message]
resume RUN: (_takes 'resume' 'gpus')
    @{{ bin }}/python {{ launch }} {{ tools }}/train.py --resume "$1"

# train and test every fold of the experiment's scheme, resumable, and pool the folds: just jobs=3 cv EXP
[group('3-5 training')]
[no-cd]
[no-exit-message]
cv EXP *OVERRIDES: (_takes 'cv' 'jobs' 'gpus')
    @{{ bin }}/python {{ tools }}/cv_train.py --jobs {{ quote(jobs) }} --gpus {{ quote(gpus) }} "$@"

# train with and without some changes, over seeds, and compare on validation: just seeds=3 ablate EXP 'a = 1' 'b = 2; c = 3'
[group('3-5 training')]
[no-cd]
[no-exit-message]
ablate EXP *CHANGES: (_takes 'ablate' 'seeds' 'jobs' 'gpus')
    @{{ bin }}/python {{ tools }}/ablate.py --seeds {{ quote(seeds) }} --jobs {{ quote(jobs) }} --gpus {{ quote(gpus) }} "$@"

# hear and see what each augmentation does, to one sound: just augment-demo FILE
[group('3-5 training')]
[no-cd]
[no-exit-message]
augment-demo *SOUND: (_takes 'augment-demo')
    @{{ bin }}/python {{ tools }}/augment_demo.py "$@"

# score a run on a part of its protocol: just part=val eval last
[group('6-7 evaluation')]
[no-cd]
[no-exit-message]
eval RUN *OPTIONS: (_takes 'eval' 'part' 'labels' 'speaker_clips' 'seen')
    @{{ bin }}/python {{ tools }}/eval_model.py --part {{ quote(part) }} --labels {{ quote(labels) }} {{ speaker_clips_flag }} {{ seen_flag }} "$@"

# score a run on another corpus over the shared labels, or every run on every other: just calm=leave_out cross last crema_d
[group('6-7 evaluation')]
[no-cd]
[no-exit-message]
cross *RUN_CORPUS: (_takes 'cross' 'calm' 'labels' 'adapt')
    @{{ bin }}/python {{ tools }}/cross_corpus.py --calm {{ quote(calm) }} --labels {{ quote(labels) }} {{ adapt_flag }} "$@"

# paired differences of two runs over speakers, and the clips that changed: just part=val compare RUN RUN
[group('6-7 evaluation')]
[no-cd]
[no-exit-message]
compare FIRST SECOND *OPTIONS: (_takes 'compare' 'part')
    @{{ bin }}/python {{ tools }}/compare.py --part {{ quote(part) }} "$@"

# score several runs as one, averaged: just weights=fitted ensemble RUN RUN RUN
[group('6-7 evaluation')]
[no-cd]
[no-exit-message]
ensemble *RUNS: (_takes 'ensemble' 'part' 'average' 'weights')
    @{{ bin }}/python {{ tools }}/ensemble.py --part {{ quote(part) }} --average {{ quote(average) }} --weights {{ quote(weights) }} "$@"

# score a run on worse recordings (noise, babble, music, telephone, rooms, speed ...): just part=val robustness RUN
[group('6-7 evaluation')]
[no-cd]
[no-exit-message]
robustness RUN *OPTIONS: (_takes 'robustness' 'part')
    @{{ bin }}/python {{ tools }}/robustness.py --part {{ quote(part) }} "$@"

# outputs/RUN/report.html, all that is known of a run in one file: just sound=1 report last
[group('6-7 evaluation')]
[no-cd]
[no-exit-message]
report RUN *OPTIONS: (_takes 'report' 'sound')
    @{{ bin }}/python {{ tools }}/report.py {{ sound_flag }} "$@"

# outputs/summary.csv, .md, .tex: a line for every evaluation
[group('6-7 evaluation')]
[no-cd]
[no-exit-message]
summary: (_takes 'summary')
    @{{ bin }}/python {{ tools }}/summarize.py

# outputs/RUN/export: the model as TorchScript, ONNX, torch.export, half, int8, seen to answer as the run does, and its card
[group('8 delivery')]
[no-cd]
[no-exit-message]
export RUN: (_takes 'export')
    @{{ bin }}/python {{ tools }}/export.py "$1"

# emotions of files, folders, patterns or standard input: just predict last speech.wav --window 3
[group('8 delivery')]
[no-cd]
[no-exit-message]
predict MODEL *FILES: (_takes 'predict')
    @{{ bin }}/ser predict "$@"

# upload a run's export to s3://, hf://, file:// ...: just overwrite=1 publish last s3://bucket/name
[group('8 delivery')]
[no-cd]
[no-exit-message]
publish RUN URL *OPTIONS: (_takes 'publish' 'overwrite')
    @{{ bin }}/python {{ tools }}/publish.py {{ overwrite_flag }} "$@"

# dist/: wheel and source archive of ser-toolkit
[group('8 delivery')]
wheel: _install
    @cd {{ root }} && rm -rf build && {{ bin }}/python -m build --no-isolation --outdir dist . > /dev/null
    @ls {{ root }}/dist/ser_toolkit-*

# the tests: offline, on CPU, a few minutes; arguments go to pytest
[group('upkeep')]
test *ARGS: _install
    @{{ bin }}/python -m pytest "$@"

# kill training and extraction at random moments, and compare what they end with
[group('upkeep')]
[no-cd]
[no-exit-message]
crash-test *OPTIONS: (_takes 'crash-test')
    @{{ bin }}/python {{ tools }}/crash_test.py "$@"

# style and types
[group('upkeep')]
lint: _install
    @{{ bin }}/ruff check .
    @{{ bin }}/ruff format --check .
    @{{ bin }}/mypy ser tools
    @{{ just }} --justfile {{ this }} --fmt --check --unstable

# format the code and this file
[group('upkeep')]
fmt: _install
    @{{ bin }}/ruff check --fix .
    @{{ bin }}/ruff format .
    @{{ just }} --justfile {{ this }} --fmt --unstable

# measure against what a user would pick instead: augment, data, extraction, inference, models, startup, training
[group('upkeep')]
[no-cd]
[no-exit-message]
bench +NAMES: (_takes 'bench')
    @[[ " $* " != *" augment "* ]] || {{ bin }}/pip install --quiet --disable-pip-version-check --constraint {{ root }}/constraints.txt --editable {{ root }}'[bench]'
    @{{ bin }}/python {{ tools }}/bench.py "$@"

# what CI runs: lint and tests
[group('upkeep')]
ci: lint test
