"""A comparison's table, as `trainer.comparison.summarise` gives it: Markdown, LaTeX, a picture."""

from pathlib import Path
from typing import Any

from data_tools.aside import replacing

SCORES = (("micro_f1", "micro-F1"), ("auprc", "AUPRC"), ("accuracy", "accuracy"))


def as_markdown(table: dict[str, Any]) -> str:
    head = ["model", "parameters", "seeds", *(name for _, name in SCORES), "training, seconds"]
    lines = [_row(head), "|---|" + "---:|" * (len(head) - 1), *(_row(cells) for cells in _cells(table, " ± "))]
    if table["differences"]:
        lines += ["", _row(["difference of micro-F1", "", "95 % interval"]), "|---|---:|---|"]
        lines += [
            _row([f"{d['first']} less {d['second']}", f"{d['micro_f1']:+.2f}", f"{d['low']:+.2f} to {d['high']:+.2f}"])
            for d in table["differences"]
        ]
    return "\n".join([*lines, "", _caption(table)]) + "\n"


def as_latex(table: dict[str, Any]) -> str:
    """A `table` environment that needs no package; the differences are a second one."""
    rows = [[_escape(cell) for cell in cells] for cells in _cells(table, " $\\pm$ ")]
    head = ["Model", "Parameters", "Seeds", *(name for _, name in SCORES), "Seconds"]
    parts = [_environment("l" + "r" * (len(head) - 1), head, rows, _escape(_caption(table)))]
    if table["differences"]:
        rows = [
            [_escape(f"{d['first']} less {d['second']}"), f"${d['micro_f1']:+.2f}$", f"$[{d['low']:+.2f}, {d['high']:+.2f}]$"]
            for d in table["differences"]
        ]
        caption = "Differences of micro-F1, with 95\\,\\% intervals by paired bootstrap over rows and seeds."
        parts.append(_environment("lrr", ["Difference", "micro-F1", "95\\,\\% interval"], rows, caption))
    return "\n".join(parts)


def draw(table: dict[str, Any], path: Path) -> None:
    """PNG: every run's micro-F1 with mean and standard deviation, and the differences with their intervals."""
    import matplotlib.figure  # takes a second, which --help need not wait for

    models, differences = table["models"], table["differences"]
    height = 1.3 + 0.42 * max(len(models), len(differences))
    figure = matplotlib.figure.Figure(figsize=(11 if differences else 6, height), layout="constrained", dpi=140)
    axes = figure.subplots(1, 2 if differences else 1, squeeze=False)[0]
    for place, model in enumerate(models.values()):
        mean, sd = model["mean"]["micro_f1"], model["sd"]["micro_f1"]
        axes[0].plot([run["micro_f1"] for run in model["runs"]], [place] * len(model["runs"]), "o", color="#5b8bd6", alpha=0.55)
        axes[0].errorbar(mean, place, xerr=sd or 0, fmt="|", markersize=16, color="#1d2430", capsize=4)
        axes[0].annotate(f"{mean:.1f}", (mean, place), (0, 10), textcoords="offset points", ha="center", fontsize=8)
    axes[0].set_yticks(range(len(models)), models)
    axes[0].set(xlabel="micro-F1: each seed, mean and standard deviation", ylim=(len(models) - 0.5, -0.6))
    if differences:
        for place, d in enumerate(differences):
            away = [[d["micro_f1"] - d["low"]], [d["high"] - d["micro_f1"]]]
            axes[1].errorbar(d["micro_f1"], place, xerr=away, fmt="o", color="#b3361f", capsize=4)
        axes[1].axvline(0, color="#9aa7b8", linewidth=1)
        axes[1].set_yticks(range(len(differences)), [f"{d['first']}\nless {d['second']}" for d in differences], fontsize=8)
        axes[1].set(xlabel="difference of micro-F1, 95 % interval", ylim=(len(differences) - 0.5, -0.5))
    for axis in axes:
        axis.grid(axis="x", color="#e3e7ee")
        axis.spines[["top", "right"]].set_visible(False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _cells(table: dict[str, Any], plus_minus: str) -> list[list[str]]:
    lines = []
    for name, model in table["models"].items():
        spread = {key: "" if sd is None else f"{plus_minus}{sd:.2f}" for key, sd in model["sd"].items()}
        scores = [f"{model['mean'][key]:.2f}{spread[key]}" for key, _ in SCORES]
        size, seconds = f"{model['parameters'] / 1e6:.1f}M", f"{model['mean']['training_seconds']:,.0f}"
        lines.append([name, size, str(len(model["runs"])), *scores, seconds])
    return lines


def _caption(table: dict[str, Any]) -> str:
    several = any(len(model["runs"]) > 1 for model in table["models"].values())
    told = "mean and standard deviation" if several else "one seed"
    return f"KLUE-RE, {table['num_examples']:,} rows of {Path(table['data']).name}; {table['selection']}; {told}."


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _environment(columns: str, head: list[str], rows: list[list[str]], caption: str) -> str:
    body = " \\\\\n".join(" & ".join(cells) for cells in rows)
    inside = f"\\hline\n{' & '.join(head)} \\\\\n\\hline\n{body} \\\\\n\\hline"
    tabular = f"\\begin{{tabular}}{{{columns}}}\n{inside}\n\\end{{tabular}}"
    return f"\\begin{{table}}\n\\centering\n{tabular}\n\\caption{{{caption}}}\n\\end{{table}}\n"


def _escape(text: str) -> str:
    """For LaTeX; the names hold letters, digits and `. - _`, file names more."""
    for character in "&%#_{}":
        text = text.replace(character, f"\\{character}")
    return text
