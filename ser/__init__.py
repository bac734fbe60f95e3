"""Audio-only speech emotion recognition on CREMA-D, RAVDESS and the like.

Modules in reading order; each imports only modules above it (``tests/test_imports.py`` holds this):

ground    annotations, errors, interrupts, files, progress, environment, plots, pages
basics    gin_files, labels, arguments, audio, export_index, enrolment, layers, interfaces, dist, metrics, stats,
          calibration, losses
table     metadata, demo, corpora, custom, splits, schemes, verify, preparing, votes, protocol, histogram
raw       fetching, archives, downloading
signal    mel, augment, augment_sound, augment_surroundings, augment_features, distortions,
          copies
encoders  packed_linear, wave_encoders, whisper_encoder, encoders
store     speakers, samplers, read_ahead, features, extraction, batches
models    adapting, hubert_attn, whisper_prompt, ecapa_tdnn, stats_probe, pipeline
scoring   predictions, scoring, scoring_count, subgroups, wording
learning  optim, checkpoints, metrics_file, initial_weights, tracking, experiment, evaluation, training_setup,
          training_step, training_state, training_solver, training
after     augment_demo, probing, summary
door      config, runs, run_evaluation, cross_corpus, comparing, launching, cross_validation, ablating, ensembles,
          robustness, report
delivery  card, parity, exporting, publishing, inference, loading, prediction_formats, predict_command
whole     rehearsal, plan_runner, plan
upkeep    measuring, bench_augment, bench_extraction, bench_inference, bench_models, bench_training, benchmarks,
          crash_test
command   cli

Importing ``ser`` itself costs nothing: heavy libraries load where they are used.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Return ``loading.load`` when it is first asked for."""
    if name != "load":
        raise AttributeError(f"module 'ser' has no attribute '{name}'")
    from ser.loading import load

    return load
