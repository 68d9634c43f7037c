"""The comparisons as a picture: for each, how many times our seconds a peer takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.report import OURS, Line, Report, lines

_COLOURS = {
    OURS: "#1f6f8b",
    "subscription": "#e08e45",
    "pgcopydb": "#8f6bb3",
    "pgcopydb follow": "#8f6bb3",
    "pg_dump | pg_restore": "#b0b0b0",
    "COPY pipe": "#d9d9d9",
    "pg_recvlogical": "#d9d9d9",
}


def plot(report: Report, path: Path) -> None:
    """Write ``path``, an SVG or PNG by its suffix.

    Raises:
        ImportError: matplotlib is not installed (extra ``bench``).
    """
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "bench"  # the same figures make the same file
    from matplotlib import pyplot

    shown = [
        (title, [line for line in lines(figures) if line.ratio]) for title, figures in report.comparisons().items()
    ]
    shown = [(title, bars) for title, bars in shown if bars]
    if not shown:
        return
    heights = [len(bars) + 1 for _, bars in shown]
    figure, axes = pyplot.subplots(
        len(shown), 1, figsize=(8, 0.32 * sum(heights) + 1), height_ratios=heights, squeeze=False, sharex=True
    )
    for axis, ((section, case), bars) in zip(axes[:, 0], shown, strict=True):
        _draw(axis, f"{section}: {case}", bars)
    axes[-1, 0].set_xlabel(
        "seconds, as a multiple of replicator's (shorter is faster); whiskers: range of the rounds", fontsize=8
    )
    about = report.about
    figure.suptitle(f"{about['source']} → {about['target']}, fsync {about['fsync']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)
    pyplot.close(figure)


def _draw(axis: Any, title: str, bars: list[Line]) -> None:
    names = [line.peer for line in bars]
    values = [line.ratio or 0.0 for line in bars]
    spread = [
        [max(0.0, (line.ratio or 0) - (line.ratio_low or 0)) for line in bars],
        [max(0.0, (line.ratio_high or 0) - (line.ratio or 0)) for line in bars],
    ]
    colours = [_COLOURS.get(name, "#888888") for name in names]
    axis.barh(names, values, color=colours, xerr=spread, error_kw={"lw": 0.8, "capsize": 2})
    axis.axvline(1, color="black", lw=0.6)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    for at, (line, value) in enumerate(zip(bars, values, strict=True)):
        axis.annotate(
            f" {value:.2f} ×  ({line.median_s:.1f} s)", (max(value, line.ratio_high or 0), at), va="center", fontsize=7
        )
    axis.margins(x=0.18)
