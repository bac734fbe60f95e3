"""Pictures: confusion matrix, training curves, layers of an encoder, class histogram and more; without a display."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser.files import write_bytes

__all__ = [
    "ablation",
    "calibration",
    "confusion",
    "cross_corpus",
    "curves",
    "histogram",
    "layers",
    "robustness",
    "spectrograms",
    "tagged_title",
]

BLUE, ORANGE, GREY = "#2f6f9f", "#d9822b", "#8a8f98"
DPI = 120


def figure(width: float, height: float, columns: int = 1, rows: int = 1):
    """Return a figure and its axes, row by row, with quiet spines; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = np.ravel(drawing.subplots(rows, columns))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def save(drawing, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=DPI)
    write_bytes(path, buffer.getbuffer())


def confusion(path: Path, counts: np.ndarray, labels: Sequence[str], title: str) -> None:
    """Draw a confusion matrix [C, C]: colour is the rate within each reference class, text the counts and rates."""
    totals = counts.sum(1, keepdims=True)
    rates = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    size = 2.2 + 0.72 * len(labels)
    drawing, (ax,) = figure(size + 0.8, size)
    image = ax.imshow(rates, vmin=0, vmax=1, cmap="Blues")
    ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(labels)), [f"{name} ({int(n)})" for name, n in zip(labels, totals[:, 0], strict=True)])
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            text = f"{counts[row, column]}\n{100 * rates[row, column]:.0f} %"
            ax.text(
                column, row, text, ha="center", va="center", fontsize=8,
                color="white" if rates[row, column] > 0.55 else "black",
            )  # fmt: skip
    ax.set_xlabel("answer")
    ax.set_ylabel("reference (clips)")
    ax.set_title(title, fontsize=10)
    ax.spines[:].set_visible(False)
    drawing.colorbar(image, ax=ax, shrink=0.7, label="share of the reference class")
    save(drawing, path)


def ablation(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the difference that each change makes, with its interval over speakers and its range over seeds.

    Args:
        path: of the PNG.
        rows: of ``ablating.row``; the one without a difference is the experiment as it is.
        title: above the picture.
    """
    changed = [row for row in rows if row["difference"] is not None]
    drawing, (ax,) = figure(5 + 0.07 * max(len(row["variant"]) for row in changed), 1.3 + 0.34 * len(changed))
    places = range(len(changed))
    for place, row in zip(places, changed, strict=True):
        if row["ci95_low"] is not None:
            ax.plot([row["ci95_low"], row["ci95_high"]], [place, place], color=BLUE, lw=1.2)
        ax.plot([row["difference_lowest"], row["difference_highest"]], [place, place], color=ORANGE, lw=5, alpha=0.5)
    ax.plot([row["difference"] for row in changed], places, color=BLUE, marker="o", ms=5, ls="")
    ax.axvline(0, color=GREY, lw=1)
    ax.set_yticks(places, [row["variant"] for row in changed], fontsize=8)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.25)
    drawing.suptitle(title, fontsize=10)
    drawing.supxlabel("difference in UAR; line: 95 % over speakers, bar: from seed to seed", fontsize=9)
    save(drawing, path)


def tagged_title(*lines: str, tags: Sequence[str]) -> str:
    """Return a title of some lines, and below them the tags that no picture of figures may lack."""
    return "\n".join([*lines, *([" ".join(tags)] if tags else [])])


def cross_corpus(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw UAR across corpora with its interval, a line for each run and corpus, adapted ones beside.

    Args:
        path: of the PNG.
        rows: of ``cross_corpus.matrix``.
    """
    told = {"cross-corpus", "transductive"}  # tags that the picture itself says
    shown = [
        tagged_title(f"{row['run']} on {row['corpus']}", tags=[tag for tag in row["tags"].split() if tag not in told])
        for row in rows
    ]
    names = list(dict.fromkeys(shown))
    drawing, (ax,) = figure(8, 1.2 + 0.42 * len(names))
    kinds = (("as trained", False, BLUE, -0.13), ("adapted: transductive", True, ORANGE, 0.13))
    for label, adapted, color, shift in kinds:
        own = [row for row in rows if row["adapted"] == adapted]
        places = [names.index(name) + shift for name, row in zip(shown, rows, strict=True) if row["adapted"] == adapted]
        for prefix, marker, word in (("", "o", ""), ("strict_", "x", ", strict")):
            uar = [row[f"{prefix}uar"] for row in own]
            ax.plot(uar, places, color=color, marker=marker, ms=5, ls="", label=f"{label}{word}")
        for row, place in zip(own, places, strict=True):
            if row["uar_low"] is not None:
                ax.plot([row["uar_low"], row["uar_high"]], [place, place], color=color, lw=1.2)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("UAR over the shared labels, 95 % over speakers")
    ax.grid(axis="x", alpha=0.25)
    ax.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    save(drawing, path)


def calibration(path: Path, metrics: Mapping[str, Any], title: str) -> None:
    """Draw reliability, before and after the temperature, and how the risk grows with what is answered.

    Args:
        path: of the PNG.
        metrics: of ``scoring.score``.
        title: above both.
    """
    drawing, (left, right) = figure(8.4, 3.6, columns=2)
    left.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--")
    states = [("as trained", BLUE, metrics)]
    if after := metrics.get("calibrated"):
        states.append(("after the temperature", ORANGE, after))
    for name, color, values in states:
        bins = [row for row in values["reliability"] if row[0] >= 5]  # fewer clips say nothing
        label = f"{name}, ECE {values['ece']:.3f}"
        left.plot([row[1] for row in bins], [row[2] for row in bins], color=color, marker="o", ms=4, label=label)
    left.set_xlim(0, 1)
    left.set_ylim(0, 1)
    left.set_xlabel("confidence")
    left.set_ylabel("share of right answers")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    curve = metrics["risk_coverage"]
    right.plot(curve["coverage"], curve["risk"], color=BLUE, marker="o", ms=3, label=f"area {curve['area']:.3f}")
    right.set_xlim(0, 1.02)
    right.set_ylim(0, max(0.05, 1.1 * max(curve["risk"])))
    right.set_xlabel("share of clips answered, surest first")
    right.set_ylabel("share of wrong answers")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for ax in (left, right):
        ax.grid(alpha=0.25)
    drawing.suptitle(title, fontsize=10)
    save(drawing, path)


def curves(path: Path, log: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw loss and, where somebody validates, validation figures by epoch from the lines of a run's log."""
    lines = [line for line in log if "epoch" in line]
    epochs = [line["epoch"] for line in lines]
    drawing, (left, right) = figure(9, 3.4, columns=2)
    marker = "o" if len(lines) < 30 else None

    def loss(name: str, color: str, label: str) -> None:
        values = [line.get(name, np.nan) for line in lines]  # a log leaves out what is not finite
        left.plot(epochs, values, color=color, marker=marker, ms=3, label=label)

    loss("epoch/train_loss", GREY, "training")
    left.set_ylabel("loss (nats)")
    axes = [left]
    if validated := all("val/uar" in line for line in lines):
        loss("val/loss", BLUE, "validation")
        uar = [line["val/uar"] for line in lines]
        right.plot(epochs, uar, color=BLUE, marker=marker, ms=3, label="UAR")
        right.plot(epochs, [line["val/wa"] for line in lines], color=ORANGE, lw=1, label="WA")
        best = int(np.argmax(uar))
        right.annotate(
            f"highest {uar[best]:.3f}", (epochs[best], uar[best]), xytext=(0, 6), textcoords="offset points",
            ha="center", fontsize=8, color=BLUE,
        )  # fmt: skip
        right.set_ylim(0, 1)
        right.set_ylabel("validation")
        axes.append(right)
    right.set_visible(validated)
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=8)
    drawing.suptitle(title, fontsize=10)
    save(drawing, path)


def layers(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the UAR of each layer with its interval, and that of all joined as a line.

    Args:
        path: of the PNG.
        rows: with ``layer`` (a number as text, or ``all``), ``uar``, ``uar_low``, ``uar_high`` (None for none).
        title: above the picture.
    """
    single = [row for row in rows if row["layer"] != "all"]
    places = [int(row["layer"]) for row in single]
    drawing, (ax,) = figure(max(4.6, 2.4 + 0.28 * len(single)), 3.4)
    uar = [row["uar"] for row in single]
    ax.plot(places, uar, color=BLUE, marker="o", ms=4, label="one layer")
    if all(row["uar_low"] is not None for row in single):
        low, high = ([row[f"uar_{end}"] for row in single] for end in ("low", "high"))
        ax.fill_between(places, low, high, color=BLUE, alpha=0.15, lw=0, label="95 % over speakers")
    for row in rows:
        if row["layer"] == "all":
            ax.axhline(row["uar"], color=ORANGE, lw=1.2, label=f"all joined, {row['uar']:.3f}")
    best = int(np.argmax(uar))
    ax.annotate(
        f"{uar[best]:.3f}", (places[best], uar[best]), xytext=(0, -14), textcoords="offset points", ha="center",
        fontsize=8, color=BLUE,
    )  # fmt: skip
    ax.set_xlabel("layer (0: before the first)")
    ax.set_ylabel("UAR")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    drawing.suptitle(title, fontsize=9)
    save(drawing, path)


def histogram(path: Path, counts: Mapping[str, Mapping[str, Sequence[int]]], labels: Sequence[str], title: str) -> None:
    """Draw clips by class, stacked, one panel a grouping.

    Args:
        path: of the PNG.
        counts: grouping (part, sex) -> group -> clips of each class [C].
        labels: the C classes.
        title: above all panels.
    """
    drawing, axes = figure(4.6 * len(counts), 3.6, columns=len(counts))
    palette = [BLUE, ORANGE, GREY, "#5aa469", "#a05195", "#c9b458"]
    places = np.arange(len(labels))
    for ax, (grouping, groups) in zip(axes, counts.items(), strict=True):
        bottom = np.zeros(len(labels))
        for number, (name, values) in enumerate(groups.items()):
            ax.bar(places, values, bottom=bottom, width=0.75, label=name, color=palette[number % len(palette)])
            bottom += np.asarray(values)
        for place, total in zip(places, bottom, strict=True):
            ax.text(place, total, f"{total:.0f}", ha="center", va="bottom", fontsize=7)
        ax.set_xticks(places, labels, rotation=40, ha="right", rotation_mode="anchor")
        ax.set_ylabel("clips")
        ax.set_title(f"by {grouping}", fontsize=9)
        # Outside the bars, which may reach any height.
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    drawing.suptitle(title, fontsize=10)
    save(drawing, path)


def robustness(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the UAR of each condition with its interval, the clips as they are as a line.

    Args:
        path: of the PNG.
        rows: of ``robustness.robustness``, the clean one first.
        title: above the picture.
    """
    clean, worse = rows[0], rows[1:]
    drawing, (ax,) = figure(7, 0.9 + 0.21 * len(worse))
    kinds = list(dict.fromkeys(row["kind"] for row in worse))
    for place, row in enumerate(worse):
        color = (BLUE, ORANGE)[kinds.index(row["kind"]) % 2]
        if row["uar_low"] is not None:
            ax.plot([row["uar_low"], row["uar_high"]], [place, place], color=color, lw=1.4, alpha=0.6)
        ax.plot(row["uar"], place, color=color, marker="o", ms=5, ls="", label="UAR" if not place else None)
        ax.plot(
            row["same_answers"], place, color=GREY, marker="|", ms=7, ls="", label=None if place else "same answers"
        )
    ax.axvline(clean["uar"], color=GREY, lw=1, ls="--", label=f"as it is, {clean['uar']:.3f}")
    names = [row["kind"] if row["kind"] == "telephone" else f"{row['kind']}: {row['value']:g}" for row in worse]
    ax.set_yticks(range(len(worse)), names, fontsize=7)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("UAR, 95 % over speakers where there are enough of them")
    ax.grid(axis="x", alpha=0.25)
    ax.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    ax.set_title(title, fontsize=9)
    save(drawing, path)


def spectrograms(path: Path, pictures: Mapping[str, np.ndarray], seconds: float, title: str) -> None:
    """Draw log-mels [T, D] side by side on one scale of colour, low bands below.

    Args:
        path: of the PNG.
        pictures: name -> log-mel, all of clips of the same length.
        seconds: of each.
        title: above all.
    """
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    drawing, axes = figure(3.1 * columns, 1.7 * rows + 0.3, columns, rows)
    lowest = min(picture.min() for picture in pictures.values())
    highest = max(picture.max() for picture in pictures.values())
    for ax, (name, picture) in zip(axes, pictures.items(), strict=False):
        extent = (0, seconds, 0, picture.shape[1])
        ax.imshow(picture.T, origin="lower", aspect="auto", extent=extent, vmin=lowest, vmax=highest, cmap="magma")
        ax.set_title(name, fontsize=9)
        ax.tick_params(labelsize=7)
    for ax in axes[len(pictures) :]:
        ax.set_visible(False)
    drawing.supxlabel("seconds", fontsize=8)
    drawing.supylabel("mel band", fontsize=8)
    drawing.suptitle(title, fontsize=10)
    save(drawing, path)
