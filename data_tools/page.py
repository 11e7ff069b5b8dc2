"""The findings about a corpus as a web page: one file, nothing loaded from elsewhere."""

import html

from data_tools.corpus import SPLITS
from data_tools.findings import Findings, Sample

_STYLE = """
body { font: 16px/1.55 system-ui, "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic", sans-serif; color: #1d2430; background: #fff;
       max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
.facts { color: #566; margin: .3rem 0 0; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { white-space: nowrap; text-align: right; padding: .3rem .7rem; border-bottom: 1px solid #e3e7ee; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: #456; } .sample { margin: .9rem 0; } .sample small { color: #899; margin-right: .5rem; }
.pieces { font-size: .86rem; line-height: 2; }
.pieces span { background: #eef3fb; border-radius: .25rem; padding: .1rem .3rem; margin: 0 .12rem; white-space: nowrap; }
.pieces span.word { background: #d9e6fa; } .pieces span.odd { background: #fbdcd5; }
svg text { font: 12px system-ui, sans-serif; fill: #456; } .notice { background: #fff7e0; padding: .5rem .8rem; border-radius: .3rem; }
"""


def render(findings: Findings) -> str:
    """HTML."""
    manifest, corpus = findings.corpus.manifest, findings.corpus
    documents = manifest["documents"]
    rows = []
    for name in SPLITS:
        counts, lengths = manifest["splits"][name], findings.lengths[name]
        length = [f"{value:.0f}" for value in lengths] or ["-"] * 4
        shares = [f"{100 * share[name]:.3f} %" for share in (findings.unknown, findings.byte_fallback)]
        rows.append([name, *(f"{counts[key]:,}" for key in ("documents", "sentences", "tokens", "characters")), *shares, *length])
    left_out = [[reason, f"{count:,}"] for reason, count in manifest["sentences"].items()]
    fertility = [
        [f.tokenizer, f"{f.tokens_per_word:.2f}", f"{f.characters_per_token:.2f}", f"{100 * f.unknown:.2f} %"] for f in findings.fertility
    ]
    inputs = ", ".join(_escape(entry["name"]) for entry in manifest["settings"]["inputs"][:8])
    parts = [
        f"<h1>{_escape(corpus.path.resolve().name)}</h1>",
        f'<p class="facts">{corpus.vocab_size:,} pieces, {manifest["token_dtype"]} tokens, fingerprint {corpus.fingerprint[:16]}<br>'
        f"{documents['found']:,} documents from {len(manifest['settings']['inputs'])} input(s): {inputs}; "
        f"{documents['without_sentences']:,} without sentences, {documents['failed']:,} could not be parsed</p>",
        *(f'<p class="notice">{_escape(notice)}</p>' for notice in manifest["notices"]),
        "<h2>Splits</h2>",
        _table(["", "documents", "sentences", "tokens", "characters", "unknown", "bytes", "5 %", "median", "95 %", "longest"], rows),
        "<h2>Training sentences by their tokens</h2>",
        _bars(findings.histogram),
        "<h2>Tokens a word, on the same sentences</h2>",
        _table(["tokenizer", "tokens a word", "characters a token", "unknown"], fertility),
        "<h2>Sentences found, and left out by reason</h2>",
        _table(["", "sentences"], left_out),
    ]
    for name in SPLITS:
        parts += [f"<h2>From {name}</h2>", *(_sample(sample) for sample in findings.samples[name])]
    title = _escape(corpus.path.resolve().name)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="ko"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _escape(text: object) -> str:
    return html.escape(str(text))


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{_escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _bars(histogram: list[tuple[str, int]]) -> str:
    highest, width, height = max(1, *(count for _, count in histogram)), 860, 200
    step = width / len(histogram)
    bars = []
    for place, (name, count) in enumerate(histogram):
        tall = height * count / highest
        x = place * step
        bars.append(
            f'<rect x="{x + 2:.1f}" y="{20 + height - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}" fill="#5b8bd6">'
            f"<title>{count:,} sentences of {name} tokens</title></rect>"
            f'<text x="{x + step / 2:.1f}" y="{height + 36}" text-anchor="middle">{name}</text>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height + 44}" width="100%" role="img"><text x="0" y="12">most: {highest:,}</text>{"".join(bars)}</svg>'
    )


def _sample(sample: Sample) -> str:
    def mark(piece: str) -> str:
        odd = piece.startswith("<0x") or piece == "<unk>"
        return (
            f'<span class="{"odd" if odd else "word" if piece.startswith("▁") else "part"}">{_escape(piece.replace("▁", "") or "␣")}</span>'
        )

    pieces = "".join(map(mark, sample.pieces))
    return f'<div class="sample"><small>{sample.item}</small>{_escape(sample.text)}<div class="pieces">{pieces}</div></div>'
