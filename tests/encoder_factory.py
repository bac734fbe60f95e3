"""Small random encoders of every family, as transformers makes and saves them."""

import json
import math
from pathlib import Path

import torch
from torch import nn
from transformers import (
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
)

MODELS = {
    "hubert": (HubertConfig, HubertModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "wavlm": (WavLMConfig, WavLMModel),
}
KINDS = [(family, norm) for family in MODELS for norm in ("layer", "group")]
WIDTH, STATES = 48, 4
WHISPER_WIDTH, WHISPER_STATES = 32, 4


def wave_settings(family: str, norm: str, **options):
    """Return the settings of a small model: ``layer`` is the form of the large models, ``group`` of the base ones."""
    small = {
        "hidden_size": WIDTH, "num_hidden_layers": STATES - 1, "num_attention_heads": 4, "intermediate_size": 64,
        "conv_dim": [32] * 7, "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer", "conv_bias": norm == "layer",
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 3,  # of 16 channels: with 12, oneDNN is wrong in bfloat16 where there is AMX
    }  # fmt: skip
    return MODELS[family][0](**small | options)


def wave_model(family: str, norm: str, **options) -> PreTrainedModel:
    """Return a small HuBERT, wav2vec 2.0 or WavLM in evaluation mode, the same one every time."""
    return randomised(MODELS[family][1](wave_settings(family, norm, **options)))


def whisper_settings(bands: int = 80, **options) -> WhisperConfig:
    """Return the settings of a small Whisper."""
    small = {
        "num_mel_bins": bands, "d_model": WHISPER_WIDTH, "max_source_positions": 1500,
        "encoder_layers": WHISPER_STATES - 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
        "vocab_size": 60, "max_target_positions": 8, "decoder_layers": 1,
        "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    }  # fmt: skip
    return WhisperConfig(**small | options)


def whisper_model(bands: int = 80, **options) -> PreTrainedModel:
    """Return a small Whisper, decoder included, in evaluation mode; the same one every time."""
    return randomised(WhisperModel(whisper_settings(bands, **options)))


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Give every weight a value that matters: no norm is the identity, no bias zero, no layer negligible."""
    generator = torch.Generator().manual_seed(1)

    def random(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if isinstance(module, nn.Embedding) or "original1" in name:  # positions, direction of the convolution
                    weight.copy_(random(weight))
                elif name == "bias":
                    weight.copy_(0.2 * random(weight))
                elif weight.dim() == 1 or name in ("original0", "gru_rel_pos_const"):
                    weight.copy_(1 + 0.3 * random(weight))
                else:
                    weight.copy_(random(weight) / weight[0].numel() ** 0.5)
    return model.eval()


def save(model: PreTrainedModel, folder: Path, normalise: bool | None = True) -> Path:
    """Save a model as it would be downloaded, and return the folder; ``normalise`` None leaves that unsaid."""
    model.save_pretrained(folder)
    if model.config.model_type == "whisper":
        kind = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": model.config.num_mel_bins}
    else:
        kind = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1}
        kind |= {} if normalise is None else {"do_normalize": normalise}
    (folder / "preprocessor_config.json").write_text(json.dumps(kind | {"sampling_rate": 16_000}))
    return folder


def instead(experiment: str, folder: Path) -> list[str]:
    """Return overrides that give an experiment with a large encoder a small one, saved in ``folder``."""
    if "hubert" in experiment and not experiment.endswith("_tiny"):
        source, width, states = save(wave_model("hubert", "layer"), folder / "hubert"), WIDTH, STATES
    elif "whisper" in experiment and not experiment.endswith("_tiny"):
        source, width, states = save(whisper_model(128), folder / "whisper"), WHISPER_WIDTH, WHISPER_STATES
    else:
        return []
    layers = ["encoder/layers = [2]"] if experiment.endswith("hubert_attn") else []
    return [f"encoder/source = '{source}'", f"encoder/width = {width}", f"encoder/states = {states}", *layers]


def noises(lengths: list[int], seed: int = 1) -> list[torch.Tensor]:
    """Return noise of the given numbers of samples, off centre and each of its own loudness."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (0.03 + 0.1 * torch.rand(1, generator=generator)) * (torch.randn(length, generator=generator) + 0.1)
        for length in lengths
    ]


def padded(clips: list[torch.Tensor], after: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips as a batch [B, N] with ``after`` behind each clip's end, and their lengths."""
    lengths = torch.tensor([len(clip) for clip in clips])
    return nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=after), lengths


def assert_near(ours: torch.Tensor, wanted: torch.Tensor, relative: float) -> None:
    """See that tensors differ by at most ``relative`` of the largest value."""
    assert ours.shape == wanted.shape
    largest = wanted.abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(ours.float(), wanted.float(), rtol=0, atol=relative * largest)


def states_of(encoder, clips: list[torch.Tensor], after: float = 0.0, last: int | None = None) -> list[torch.Tensor]:
    """Return an encoder's states of a batch of clips, with ``after`` behind each clip's end."""
    return list(encoder.states(*padded(clips, after), last))


def assert_invariant(encoder, clips, relative, after=math.nan):
    """See that each clip's states are the same alone and in a batch, and zero behind its end."""
    together = states_of(encoder, clips, after)
    frames = encoder.frames(torch.tensor([len(clip) for clip in clips])).tolist()
    assert len(together) == encoder.state_count
    for row, (clip, count) in enumerate(zip(clips, frames, strict=True)):
        for state, alone in zip(together, states_of(encoder, [clip]), strict=True):
            assert alone.shape == (1, count, encoder.width)
            assert state.shape == (len(clips), max(frames), encoder.width)
            assert_near(state[row, :count], alone[0], relative)
            assert not state[row, count:].any()


def assert_nothing_above_is_computed(encoder) -> None:
    """See that states come one by one, and no layer runs above the last that is wanted."""
    calls = []
    hooks = [
        block.final_layer_norm.register_forward_hook(lambda *_, number=number: calls.append(number))
        for number, block in enumerate(encoder.blocks, start=1)
    ]
    clips = noises([5000, 2000])
    full = states_of(encoder, clips)
    for last in range(encoder.state_count):
        calls.clear()
        states = states_of(encoder, clips, last=last)
        assert calls == list(range(1, last + 1))
        assert len(states) == last + 1
        assert all(torch.equal(state, wanted) for state, wanted in zip(states, full, strict=False))
    calls.clear()
    next(encoder.states(*padded(clips)))
    assert calls == []
    for hook in hooks:
        hook.remove()
