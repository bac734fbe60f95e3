"""One step of training: forward and backward over the parts of a batch, gradients of all processes, one update.

A step's loss is the weighted mean over all clips of the batch, whatever parts and processes they are in: sums and
weights are added up, and divided once. Statistics that models keep of their batches are averaged over processes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ser import dist
from ser.batches import Batch
from ser.errors import UserError, some
from ser.training_setup import Setup

__all__ = ["SKIPS", "Stepper", "check_finite"]

SKIPS = 5  # steps in a row whose loss is not finite, before training stops


class Stepper:
    """Makes the steps of a run.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup):
        self.experiment, self.setup = setup.experiment, setup
        self.device = setup.weights.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=setup.experiment.training.precision == "fp16")  # type: ignore[attr-defined]
        self.trained = [p for p in setup.model.parameters() if p.requires_grad]

    def step(
        self, parts: Sequence[Batch], epoch: int, factor: float, stop: Callable[[], int] = lambda: 0
    ) -> dict[str, Any]:
        """Make one step.

        Args:
            parts: this process's parts of the batch; none where its clips could not be read.
            epoch: counted from 0.
            factor: on the learning rate.
            stop: asked once for the signal that this process was sent; 0 for none.

        Returns:
            What the log wants to know, and ``stop`` of all processes. ``train/skipped`` says that nothing was
            learned: the loss or its gradient was not finite, or no clip could be read; ``train/overflow`` that the
            loss is scaled less from now on, as fp16 does until it fits.
        """
        optimizer, training = self.setup.optimizer, self.experiment.training
        lr = self.experiment.optimizer.lr * factor
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        optimizer.zero_grad(set_to_none=True)
        before = [buffer.clone() for buffer in self.setup.model.buffers()]
        memory = self.setup.embeddings
        known = None if memory is None else dict(memory.values)
        if self.scaler.is_enabled():
            self.scaler.scale(torch.zeros((), device=self.device))  # which begins it, also where no part could be read
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for batch in parts:
            total, share = self.forward(batch, epoch)
            self.scaler.scale(total / training.batch_size).backward()
            sums[0] += total.detach()
            sums[1] += share
        sums[2] = stop()
        sums = self.add_up(sums)
        loss, weight = (sums[0] / sums[1]).item(), sums[1].item()
        values = {"train/loss": loss, "train/lr": lr, "train/grad_norm": math.nan, "stop": int(sums[2])}
        if not weight:  # none of the clips could be read
            return values | {"train/skipped": 1}
        for parameter in self.trained:
            if parameter.grad is not None:
                parameter.grad.mul_(training.batch_size / weight)
        self.scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.trained, training.clip_norm))
        values["train/grad_norm"] = norm
        if not math.isfinite(loss) or not math.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)
            for buffer, value in zip(self.setup.model.buffers(), before, strict=True):
                buffer.copy_(value)
            if memory is not None and known is not None:
                memory.values = known
            return values | self.lower_scale(math.isfinite(loss))
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.setup.ema is not None:
            self.setup.ema.update()
        return values

    def lower_scale(self, overflow: bool) -> dict[str, Any]:
        """Scale the next losses less, where they are scaled; say whether the step counts as skipped.

        Args:
            overflow: the loss was finite, so that gradients in half precision may only have been scaled too much.
        """
        if self.scaler.is_enabled():
            before = self.scaler.get_scale()
            self.scaler.update()  # which unscaling has told of values that are not finite
            if self.scaler.get_scale() >= before:  # the loss itself is not finite, the gradients happen to be
                self.scaler.update(before * self.scaler.get_backoff_factor())
            if overflow and self.scaler.get_scale() >= 1:
                return {"train/overflow": 1}
        return {"train/skipped": 1}

    def forward(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Augment, and return the sum of the clips' losses and of their weights."""
        experiment, model, seed = self.experiment, self.setup.model, self.experiment.seed
        augment, features, inputs, targets = experiment.augment, experiment.features, batch.inputs, batch.targets
        draw = (seed, epoch, batch.keys)
        if not features.cached:
            inputs = augment.clipwise("sound", inputs, batch.lengths, *draw)
            inputs, targets = augment.across("mix_sound", inputs, batch.lengths, targets, *draw)
        frames, lengths = features.frames(inputs, batch.lengths)
        frames = augment.clipwise("features", frames, lengths, *draw)
        frames, targets = augment.across("mix_features", frames, lengths, targets, *draw)
        own = slice(batch.neighbours, None)
        frames, lengths, targets, clips = frames[own], lengths[own], targets[own], batch.clips[own]
        with dist.autocast(self.device, experiment.training.precision):
            if self.setup.embeddings is None:
                logits = model(frames, lengths, None if batch.speakers is None else batch.speakers.rows(own))
            else:
                embedding = model.embed(frames, lengths)
                known = self.setup.embeddings.of(clips, embedding, f"{seed}/{epoch}/")
                logits = model.classify(embedding, known)
        return experiment.loss.parts(logits, targets, self.setup.weights, self.setup.prior)

    def buffers(self) -> list[Tensor]:
        """Return the statistics that the model keeps of its batches, each part of a step being a batch of its own."""
        return [buffer for buffer in self.setup.model.buffers() if buffer.is_floating_point()]

    def add_up(self, sums: Tensor) -> Tensor:
        """Add up sums and gradients over all processes and average statistics of the model."""
        if dist.world_size() == 1:
            return sums
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        shared = [p.grad for p in self.trained if p.grad is not None] + self.buffers()
        shares = [1.0] * len(self.trained) + [1 / dist.world_size()] * (len(shared) - len(self.trained))
        kind = torch.float64 if any(value.dtype == torch.float64 for value in shared) else torch.float32
        flat = dist.all_reduce(torch.cat([value.flatten().to(kind) for value in shared]))
        for value, share, piece in zip(shared, shares, flat.split([v.numel() for v in shared]), strict=True):
            value.copy_(piece.view_as(value) * share)
        return dist.all_reduce(sums)


def check_finite(skipped: int, parts: Sequence[Batch], values: dict[str, Any]) -> None:
    """Raise a UserError after ``SKIPS`` steps in a row that were skipped, with the clips of the last."""
    if skipped >= SKIPS:
        names = [name for batch in parts for name in batch.names[batch.neighbours :]]
        if not names:
            raise UserError(f"no clip of {skipped} batches in a row can be read; look at the lines above")
        raise UserError(
            f"{skipped} steps in a row had loss {values['train/loss']}, gradient norm {values['train/grad_norm']}; the "
            f"last in a batch of {some(names, 64)}; lower train/lr, or look at these clips"
        )
