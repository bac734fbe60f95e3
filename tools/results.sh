#!/usr/bin/env bash
# The best model of a corpus so far, from raw recordings to figures, report and export; RESULTS.md says what to expect.
set -euo pipefail
just=$1 justfile=$2 corpus=$3 jobs=$4 gpus=$5
shift 5 # what is left says where the recordings are, and whether some may be missing
root=$(dirname "$justfile")

run() {
    printf '\n\033[1m$ just%s\033[0m\n' "$(printf ' %q' "$@")"
    "$just" --justfile "$justfile" "$@"
}

# Train an experiment, and leave the name of its run in $name: `last` may be another's by the time it ends.
train() {
    name=$("$root/.venv/bin/python" "$root/tools/train.py" --name "$@")
    run "$gpus" train "$@"
}

case $corpus in
ravdess)
    run "$@" prepare ravdess
    run "$gpus" extract ravdess whisper_tiny_en 'encoder/copies = ["speed 0.9", "speed 1.1", "gain -6", "gain 6"]'
    train ravdess_stats_probe_copies
    run eval "$name"
    run report "$name"
    run "$jobs" "$gpus" cv ravdess_stats_probe_copies
    run export "$name" # after the folds, whose pooled figures stand in its card
    run "$jobs" "$gpus" cv ravdess_stats_probe 'stats/normalisation = "speaker"'
    ;;
crema_d)
    run "$@" prepare crema_d
    run "$gpus" extract crema_d whisper_tiny_en
    train crema_d_stats_probe
    run part=val eval "$name"
    train crema_d_stats_probe 'stats/normalisation = "speaker"'
    run part=val eval "$name"
    tuned=(crema_d_hubert_attn_finetune_tiny 'tune/layers = 2' 'train/epochs = 6')
    train "${tuned[@]}"
    run part=val eval "$name"
    run part=val robustness "$name"
    run report "$name"
    # The model itself: with the validation speakers, too, now that nothing is left to choose on them.
    train "${tuned[@]}" 'train/keep = "last"' 'train/with_validation = True'
    case " $* " in
    *" allow_missing=1 "*) echo "Its test part was not scored: clips may be missing." ;;
    *) run eval "$name" ;;
    esac
    run export "$name"
    ;;
*)
    echo "error: no results of '$corpus' are published; known: crema_d, ravdess" >&2
    exit 2
    ;;
esac
run summary
