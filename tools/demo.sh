#!/usr/bin/env bash
# The whole job on the built-in corpus, by the very commands that you would type.
set -euo pipefail
just=$1 justfile=$2
root=$(dirname "$justfile")

run() {
    printf '\n\033[1m$ just %s\033[0m\n' "$*"
    "$just" --justfile "$justfile" "$@"
}

home=${SER_HOME:-$root}
started=$SECONDS
export WANDB_MODE=offline # nothing is sent, also after `wandb login`
run prepare demo
run extract demo logmel80
run train demo_ecapa
name=$("$root/.venv/bin/python" "$root/tools/train.py" --name demo_ecapa) # `last` may be another's by now
run eval "$name"
run report "$name"
run summary
run export "$name"
run predict "$home/outputs/$name/export" "$home/data/demo/raw/s01/s01_*_t1_r1.*"

cat <<EOF

done in $((SECONDS - started)) s; the pictures:
  $home/data/demo/histogram.png
  $home/outputs/$name/curves.png
  $home/outputs/$name/eval/demo-holdout-test/confusion.png
  $home/outputs/$name/eval/demo-holdout-test/calibration.png

all of it in one page:
  $home/outputs/$name/report.html

the model, ready to be used elsewhere, and what it is:
  $home/outputs/$name/export/model.ts
  $home/outputs/$name/export/model_card.md

try next:
  just show demo_ecapa                                          every setting of this run
  just train demo_ecapa 'seed = 2' 'train/lr = 5e-4'            another run beside it
  just robustness last                                          noise, babble, telephone, rooms ...
  just raw=PATH prepare ravdess                                 your own recordings
EOF
