"""Audio-only speech emotion recognition on CREMA-D, RAVDESS and the like.

Rooms in reading order; each imports only rooms above it (``tests/test_imports.py`` holds this):

ground    errors, interrupts, files, progress, labels, audio, layers, dist, metrics, stats, losses, plots
table     metadata, demo, corpora, custom, splits, schemes, verify, preparing, votes, protocol, histogram
raw       fetching, unpacking, downloading
signal    mel, augment, features, batches
models    ecapa_tdnn
learning  optim, checkpoints, tracking, experiment, evaluation, workbench, state, training
after     summary, reporting
door      config, runs, benchmarks, cli

Importing ``ser`` itself costs nothing: heavy libraries load where they are used.
"""

__version__ = "0.1.0"
