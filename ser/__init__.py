"""Audio-only speech emotion recognition on CREMA-D, RAVDESS and the like.

Rooms in reading order; each imports only rooms above it (``tests/test_imports.py`` holds this):

ground    errors, files, labels, audio, layers, dist, metrics, stats, losses, plots
table     metadata, corpora, demo, splits, verify
signal    mel, augment, features, batches
models    ecapa_tdnn
learning  optim, checkpoints, tracking, experiment, evaluation, training
door      config, cli

Importing ``ser`` itself costs nothing: heavy libraries load where they are used.
"""

__version__ = "0.1.0"
