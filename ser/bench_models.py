"""``just bench models``: what short context, stored frames, our Bi-LSTM and pooling gain; random weights, noise."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ser.bench_extraction import make_encoders
from ser.labels import label_set
from ser.measuring import Row, compare, limited, timed

__all__ = ["models"]

LABELS = label_set("crema_d")
SHORT, LONG = 4.0, 30.0  # seconds of context
CLIPS = 4  # a batch
POOLED = (32, 1536, 300)  # clips, channels, frames: what ECAPA-TDNN of 512 channels pools
FRAMES = (32, 200, 1024)  # clips, frames, features: 4 s of HuBERT-Large before a Bi-LSTM of 128


def models() -> list[Row]:
    """Measure steps of Whisper-prompt by context, of HuBERT-attn by where frames come from, Bi-LSTM and pooling."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_encoders(home)
        memory = {seconds: grown(home, seconds) for seconds in (SHORT, LONG)}
        prompt = {seconds: step(*prompted(home, seconds)) for seconds in (SHORT, LONG)}
        what = f"Whisper-prompt, {CLIPS} clips: {SHORT:.0f} s of context against {LONG:.0f} s"
        rows = [
            compare(f"{what}, s a step", prompt[SHORT], prompt[LONG], 0.2, repeats=5),
            limited(f"{what} (a fifth), GiB", memory[SHORT], memory[LONG] / 5),
            compare(
                "HuBERT-attn: stored frames against end to end, s a step", step(*stored()), step(*inside(home)), 0.5
            ),
        ]
    return [*rows, recurrence(), *pooling()]


Work = tuple[Any, Any, Any]  # model, inputs, lengths


def prompted(home: Path, seconds: float) -> Work:
    """Return Whisper-tiny with 16 prompts at every layer, and a batch of mels."""
    import torch

    from ser.adapting import Adapted
    from ser.encoders import Pretrained
    from ser.whisper_prompt import WhisperPrompt

    encoder = Pretrained(str(home / "whisper"), 384, 5)
    model = WhisperPrompt(LABELS, Adapted(encoder, prompts=16, prompt_depth=None))
    frames = round(100 * seconds) + 2
    return model, torch.randn(CLIPS, frames, 80), torch.full((CLIPS,), frames)


def stored() -> Work:
    """Return HuBERT-attn for stored frames of HuBERT-Large's width, and a batch of ``SHORT`` seconds."""
    import torch

    from ser.hubert_attn import HubertAttn

    frames = round(50 * SHORT) - 1
    return HubertAttn(LABELS, 1024), torch.randn(CLIPS, frames, 1024), torch.full((CLIPS,), frames)


def inside(home: Path) -> Work:
    """Return the same with a frozen encoder of HuBERT-Large's shape inside, and sound as long."""
    import torch

    from ser.adapting import Adapted
    from ser.encoders import Pretrained
    from ser.hubert_attn import HubertAttn

    encoder = Adapted(Pretrained(str(home / "large"), 1024, 25), layers=[12])
    samples = round(16_000 * SHORT)
    return HubertAttn(LABELS, 1024, encoder=encoder), torch.randn(CLIPS, samples), torch.full((CLIPS,), samples)


def step(model: Any, inputs: Any, lengths: Any) -> Callable[[], float]:
    """Return a function that makes a step of training and returns its seconds."""
    import torch

    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    targets = torch.arange(len(inputs)) % len(LABELS)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(inputs, lengths), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(step)


def grown(home: Path, seconds: float) -> float:
    """Return by how many GiB the steps of Whisper-prompt raise the peak memory of a process of their own."""
    code = "import sys; from ser.bench_models import peak; peak(sys.argv[1], float(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(home), str(seconds)],
        check=True, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def peak(folder: str, seconds: float) -> None:
    """Print what two steps add to this process's peak memory, GiB, after one on a tenth of a second."""
    from ser import dist

    model, inputs, lengths = prompted(Path(folder), seconds)
    step(model, inputs[:, :12].clone(), lengths.clamp(max=12))()
    before = dist.peak_gib()
    once = step(model, inputs, lengths)
    once(), once()
    print(dist.peak_gib() - before)


def recurrence() -> Row:
    """Compare our way through a Bi-LSTM over clips of 2 to 4 s with torch's packed clips, forward and backward."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    from ser.hubert_attn import recurrent

    torch.manual_seed(1)
    clips, frames, width = FRAMES
    lstm = torch.nn.LSTM(width, 128, batch_first=True, bidirectional=True)
    x = torch.randn(*FRAMES, requires_grad=True)
    lengths = torch.linspace(frames, frames // 2, clips).long()

    def packed() -> Any:
        return pad_packed_sequence(lstm(pack_padded_sequence(x, lengths, batch_first=True))[0], batch_first=True)[0]

    ours, peer = timed(lambda: recurrent(lstm, x, lengths).sum().backward()), timed(lambda: packed().sum().backward())
    return compare("Bi-LSTM over clips of 2-4 s, s forward and backward", ours, peer, 1.0, repeats=7)


def pooling() -> list[Row]:
    """Compare our way through SpeechBrain's attentive statistics pooling with its own, forward and backward."""
    import torch
    from speechbrain.lobes.models.ECAPA_TDNN import AttentiveStatisticsPooling

    from ser.ecapa_tdnn import attentive_statistics

    torch.manual_seed(1)
    clips, channels, frames = POOLED
    pool = AttentiveStatisticsPooling(channels).train()
    x = torch.randn(*POOLED, requires_grad=True)
    lengths = torch.full((clips,), frames)
    ours = timed(lambda: attentive_statistics(pool, x, lengths).sum().backward())
    peer = timed(lambda: pool(x, lengths / frames).sum().backward())
    row = compare("attentive statistics pooling, s forward and backward", ours, peer, 1.0, repeats=7)
    with torch.no_grad():
        pool.eval()
        apart = (attentive_statistics(pool, x, lengths) - pool(x, lengths / frames)).abs().max().item()
    return [row, limited("the same: largest difference, in 1e-5", apart / 1e-5, 1.0)]
