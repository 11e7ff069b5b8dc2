"""An evaluation on KLUE-RE as a web page: one file, nothing loaded from elsewhere."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve

from trainer.relations import LABELS, Relation
from trainer.scores import NUM_CURVES, calibration_bins, calibration_error, confident_mistakes, confusion, most_frequent

NUM_MISTAKES = 40

_STYLE = """
body { font: 16px/1.55 system-ui, "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic", sans-serif; color: #1d2430; background: #fff;
       max-width: 66rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; } p { margin: .3rem 0 .8rem; color: #566; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #e3e7ee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: #456; }
.scores { display: flex; gap: 2.5rem; margin: 1.2rem 0; } .scores b { display: block; font-size: 1.9rem; line-height: 1.2; }
.bar { display: inline-block; height: .7rem; background: #5b8bd6; border-radius: .15rem; vertical-align: middle; }
.subject, .object { background: #cfe3ff; border-radius: .2rem; padding: 0 .2rem; } .object { background: #ffe1bd; }
.mistake { border-left: 3px solid #e3e7ee; padding: .1rem 0 .1rem .9rem; margin: 1rem 0; } .mistake small { color: #677; }
.wrong { color: #b3361f; } .right { color: #1d7a46; } .charts { display: flex; flex-wrap: wrap; gap: 1.2rem; }
svg text { font: 11px system-ui, sans-serif; fill: #456; } .matrix text { font-size: 8.5px; }
"""


def render(rows: Sequence[Relation], probabilities: np.ndarray, report: dict[str, Any]) -> str:
    """HTML. probabilities: (rows, 30), official order; report: as `evaluation.report_on` gives it."""
    labels, predictions = np.array([row.label for row in rows]), probabilities.argmax(axis=1)
    parts = [
        f"<h1>{_escape(report['model'])}</h1><p>on {_escape(report['data'])}, {report['num_examples']:,} rows; {_reading(report)}</p>",
        '<div class="scores">'
        + "".join(f"<div><b>{report[key]:.2f}</b>{name}</div>" for key, name in
                  (("micro_f1", "micro-F1"), ("auprc", "AUPRC"), ("accuracy", "accuracy")))
        + f"<div><b>{calibration_error(labels, probabilities):.3f}</b>calibration error</div></div>",
        "<h2>Relations</h2><p>F1, precision and recall in percent; rows in the data.</p>",
        _per_label(report["per_label"]),
        *_shift(report),
        "<h2>Confusion</h2><p>Rows are the true relations, columns the predicted ones; the shade is the share of the row. Numbers are rows"
        " of the data.</p>",
        _confusion(labels, predictions),
        f"<h2>Precision and recall</h2><p>The {NUM_CURVES} relations with the most rows.</p>",
        f'<div class="charts">{_curves(labels, probabilities)}</div>',
        "<h2>Calibration</h2><p>How often a prediction of that probability is right. On the line, probabilities mean what they say.</p>",
        _calibration(labels, probabilities),
        f"<h2>Most confident mistakes</h2><p>{NUM_MISTAKES} at most. The subject is <span class='subject'>blue</span>, the object "
        "<span class='object'>orange</span>.</p>",
        *_mistakes(rows, labels, predictions, probabilities),
    ]  # fmt: skip
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_escape(report["model"])}</title>'
    return f'<!doctype html><html lang="ko"><head>{head}<style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>\n'


def _reading(report: dict[str, Any]) -> str:
    chosen = f"{report['selection']}; " if "selection" in report else ""
    cut = f"{report['num_cut']:,} rows cut to {report['max_length']} tokens around their entities"
    return _escape(f"{chosen}format {report['input_format']}, head {report['head']}, {cut}")


def _shift(report: dict[str, Any]) -> list[str]:
    """What the report knows of the training rows, in words; nothing where it knows nothing."""
    if "label_shift" not in report:
        return []
    shift, rows = report["label_shift"], report["training_rows"]
    return [
        "<h2>Training rows</h2>",
        f"<p>Their label shares differ from this data's by {shift['total_variation']:.3f} (total variation, 0 to 1). With the model's "
        f"probabilities reweighted to this data's shares micro-F1 would be {shift['micro_f1_at_these_shares']:.2f}; no score to report, "
        f"since it looks at the answers. {rows['number']:,} rows were trained on; {rows['conflicting']:,} rows of the training file give "
        f"one pair of entities different labels, and were {'left out' if rows['conflicts'] == 'drop' else 'kept'}.</p>",
    ]


def _escape(text: object) -> str:
    return html.escape(str(text))


def _per_label(per_label: dict[str, dict[str, float]]) -> str:
    most = max(1, *(int(scores["support"]) for scores in per_label.values()))
    lines = []
    for name, scores in sorted(per_label.items(), key=lambda item: -item[1]["support"]):
        cells = "".join(f"<td>{scores[key]:.1f}</td>" for key in ("f1", "precision", "recall"))
        bar = f'<span class="bar" style="width:{8 * scores["f1"] / 100:.2f}rem"></span>'
        support = f'<span class="bar" style="width:{6 * scores["support"] / most:.2f}rem;background:#c4cfdd"></span>'
        lines.append(
            f"<tr><td>{_escape(name)}</td>{cells}<td style='text-align:left'>{bar}</td><td>{int(scores['support']):,}</td>"
            f"<td style='text-align:left'>{support}</td></tr>"
        )
    head = "<tr><th>relation</th><th>F1</th><th>precision</th><th>recall</th><th></th><th>rows</th><th></th></tr>"
    return f"<table>{head}{''.join(lines)}</table>"


def _confusion(labels: np.ndarray, predictions: np.ndarray) -> str:
    used, counts = confusion(labels, predictions)
    size, left, top = 24, 220, 190
    cells = []
    for y, true in enumerate(used):
        total = max(1, counts[y].sum())
        cells.append(
            f'<text x="{left - 6}" y="{top + y * size + 16}" text-anchor="end" style="font-size:11px">{_escape(LABELS[true])}</text>'
        )
        place = f"translate({left + y * size + 15},{top - 6}) rotate(-60)"
        cells.append(f'<text transform="{place}" style="font-size:11px">{_escape(LABELS[true])}</text>')
        for x, predicted in enumerate(used):
            share, count = counts[y, x] / total, counts[y, x]
            colour = "29,122,70" if true == predicted else "179,54,31"
            box = f'x="{left + x * size}" y="{top + y * size}" width="{size - 1}" height="{size - 1}"'
            cells.append(f'<rect {box} fill="rgba({colour},{0.03 + 0.9 * share:.3f})"><title>{count} rows: {LABELS[true]} read as '
                         f"{LABELS[predicted]}</title></rect>")  # fmt: skip
            if count:
                ink = ' style="fill:#fff"' if share > 0.5 else ""
                cells.append(f'<text x="{left + (x + 0.5) * size}" y="{top + y * size + 15}" text-anchor="middle"{ink}>{count}</text>')
    width, height = left + len(used) * size + 90, top + len(used) * size + 4
    return f'<svg class="matrix" viewBox="0 0 {width} {height}" width="100%" role="img">{"".join(cells)}</svg>'


def _chart(title: str, lines: str, x_name: str, y_name: str, size: int = 210) -> str:
    axes = f'<rect x="30" y="20" width="{size}" height="{size}" fill="none" stroke="#cdd5e0"/>'
    ticks = "".join(
        f'<text x="{30 + size * t}" y="{size + 34}" text-anchor="middle">{t:g}</text><text x="26" y="{24 + size * (1 - t)}" '
        f'text-anchor="end">{t:g}</text>'
        for t in (0, 0.5, 1)
    )
    names = f'<text x="{30 + size / 2}" y="{size + 48}" text-anchor="middle">{x_name}</text><text x="34" y="{size + 12}">{y_name}</text>'
    return (
        f'<svg viewBox="0 0 {size + 45} {size + 54}" width="{size + 45}" role="img">'
        f'<text x="30" y="13" style="font-weight:600">{_escape(title)}</text>'
        f"{axes}{ticks}{names}{lines}</svg>"
    )


def _line(xs: np.ndarray, ys: np.ndarray, colour: str, size: int = 210, dashes: str = "") -> str:
    points = " ".join(f"{30 + size * x:.1f},{20 + size * (1 - y):.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dashes}"/>'


def _curves(labels: np.ndarray, probabilities: np.ndarray) -> str:
    charts = []
    for label in most_frequent(labels, NUM_CURVES):
        precision, recall, _ = precision_recall_curve(labels == label, probabilities[:, label])
        # Evenly over recall: evenly over thresholds nearly all points would lie at the end of a relation with few rows.
        even = np.searchsorted(-recall, -np.linspace(0, 1, 200)).clip(max=len(recall) - 1)
        keep = np.unique([0, *even, len(recall) - 1])
        title = f"{LABELS[label]} ({np.count_nonzero(labels == label)})"
        charts.append(_chart(title, _line(recall[keep], precision[keep], "#5b8bd6"), "recall", "precision"))
    return "".join(charts)


def _calibration(labels: np.ndarray, probabilities: np.ndarray) -> str:
    size = 300
    circles = "".join(
        f'<circle cx="{30 + size * confidence:.1f}" cy="{20 + size * (1 - right):.1f}" r="{2 + 14 * share**0.5:.1f}" fill="#5b8bd6" '
        f'fill-opacity="0.75"><title>{100 * share:.1f} % of the rows</title></circle>'
        for confidence, right, share in calibration_bins(labels, probabilities)
    )
    diagonal = _line(np.array([0, 1]), np.array([0, 1]), "#9aa7b8", size, "4 4")
    return _chart("predictions, by probability", diagonal + circles, "probability", "share that is right", size)


def _mistakes(rows: Sequence[Relation], labels: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> list[str]:
    confidence = probabilities.max(axis=1)
    found = []
    for place in confident_mistakes(labels, probabilities, NUM_MISTAKES):
        row = rows[place]
        truth = f'<span class="right">{_escape(LABELS[row.label])}</span> ({probabilities[place, row.label]:.2f})'
        said = f'<span class="wrong">{_escape(LABELS[predictions[place]])}</span> ({confidence[place]:.2f})'
        found.append(f'<div class="mistake">{_highlighted(row)}<br/><small>{_escape(row.guid)}: said {said}, is {truth}</small></div>')
    return found or ["<p>None.</p>"]


def _highlighted(row: Relation) -> str:
    text, position = "", 0
    for kind, entity in sorted((("subject", row.subject), ("object", row.object)), key=lambda pair: pair[1].start):
        text += _escape(row.sentence[position : entity.start])
        text += f'<span class="{kind}">{_escape(row.sentence[entity.start : entity.end + 1])}</span>'
        position = entity.end + 1
    return text + _escape(row.sentence[position:])
