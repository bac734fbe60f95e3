#!/usr/bin/env bash
# The best model of a corpus so far, from raw recordings to figures, report and export; RESULTS.md says what to expect.
set -euo pipefail
just=$1 justfile=$2 corpus=$3
shift 3 # what is left says where the recordings are, and whether some may be missing

run() {
    printf '\n\033[1m$ just %s\033[0m\n' "${*@Q}"
    "$just" --justfile "$justfile" "$@"
}

case $corpus in
ravdess)
    run "$@" prepare ravdess
    run extract ravdess whisper_tiny_en 'encoder/copies = ["speed 0.9", "speed 1.1", "gain -6", "gain 6"]'
    run train ravdess_stats_probe_copies
    run eval last
    run report last
    run export last
    run cv ravdess_stats_probe_copies
    run cv ravdess_stats_probe 'stats/normalisation = "speaker"'
    ;;
crema_d)
    run "$@" prepare crema_d
    run extract crema_d whisper_tiny_en
    run train crema_d_stats_probe
    run part=val eval last
    run train crema_d_stats_probe 'stats/normalisation = "speaker"'
    run part=val eval last
    tuned=(crema_d_hubert_attn_finetune_tiny 'tune/layers = 2' 'train/epochs = 6')
    run train "${tuned[@]}"
    run part=val eval last
    run part=val robustness last
    run report last
    # The model itself: with the validation speakers, too, now that nothing is left to choose on them.
    run train "${tuned[@]}" 'train/keep = "last"' 'train/with_validation = True'
    case " $* " in
    *" allow_missing=1 "*) echo "Its test part was not scored: clips may be missing." ;;
    *) run eval last ;;
    esac
    run export last
    ;;
*)
    echo "error: no results of '$corpus' are published; known: crema_d, ravdess" >&2
    exit 2
    ;;
esac
run summary
