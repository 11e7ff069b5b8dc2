"""What is inside a corpus: counts, sentence lengths, unknown tokens, tokens a word, decoded samples.

python -m data_tools.inspect CORPUS [--seed-model DIR_OR_HUB_ID] [--html page.html] [--verify]
"""

import argparse
from pathlib import Path

from data_tools import aside
from data_tools.corpus import SPLITS, Corpus
from data_tools.errors import run_command
from data_tools.findings import Findings
from data_tools.page import render


def describe(findings: Findings) -> str:
    """The report, plain text."""
    corpus, manifest = findings.corpus, findings.corpus.manifest
    documents = manifest["documents"]
    lines = [
        f"{corpus.path}: {corpus.vocab_size} pieces, {manifest['token_dtype']} tokens, fingerprint {corpus.fingerprint[:16]}",
        f"made from {len(manifest['settings']['inputs'])} file(s), {documents['found']} documents: "
        f"{documents['without_sentences']} without sentences, {documents['failed']} could not be parsed",
        "sentences " + ", ".join(f"{reason} {count}" for reason, count in manifest["sentences"].items()),
        "",
        f"{'split':6} {'documents':>10} {'sentences':>11} {'tokens':>13} {'characters':>13} {'unknown':>8} {'bytes':>8}"
        "  tokens a sentence: 5 %, median, 95 %, longest",
    ]
    for name in SPLITS:
        counts, lengths = manifest["splits"][name], findings.lengths[name]
        shares = " ".join(f"{100 * share[name]:>6.3f} %" for share in (findings.unknown, findings.byte_fallback))
        lines.append(
            f"{name:6} {counts['documents']:>10} {counts['sentences']:>11} {counts['tokens']:>13} {counts['characters']:>13} {shares}"
            f"  {', '.join(f'{value:.0f}' for value in lengths) or '-'}"
        )
    lines += [f"notice: {notice}" for notice in manifest["notices"]]
    lines += ["", "training sentences by their tokens:"]
    highest = max(1, *(count for _, count in findings.histogram))
    lines += [f"  {name:>9} {count:>10} {'#' * round(50 * count / highest)}" for name, count in findings.histogram if count]
    lines += ["", f"{'tokenizer':40} {'tokens a word':>14} {'characters a token':>19} {'unknown':>9}"]
    lines += [
        f"{f.tokenizer:40} {f.tokens_per_word:>14.2f} {f.characters_per_token:>19.2f} {100 * f.unknown:>7.2f} %" for f in findings.fertility
    ]
    if len(findings.fertility) == 1:
        lines.append("(--seed-model adds the seed's own tokenizer for comparison)")
    for name in SPLITS:
        lines += ["", f"from {name}:"]
        for sample in findings.samples[name]:
            lines += [f"  [{sample.item}] {sample.text}", f"      {' '.join(sample.pieces)}"]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("--samples", type=int, default=5, help="sentences shown of each split (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--seed-model", help="folder, hub id or package:NAME/PATH: its tokenizer on the same sentences")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page instead of the report")
    parser.add_argument("--verify", action="store_true", help="compare every file's SHA-256 with the manifest")
    options = parser.parse_args()
    corpus = Corpus.open(options.corpus)
    if options.verify:
        corpus.verify()
    findings = Findings.of(corpus, max(0, options.samples), options.seed, options.seed_model)
    if options.html:
        aside.write_text(options.html, render(findings))
        print(options.html)
    else:
        print(describe(findings))
    if options.verify:
        print("\nevery file has the SHA-256 of the manifest")


if __name__ == "__main__":
    run_command(main)
