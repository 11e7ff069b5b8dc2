"""The steps of data_tools.prepare as commands of their own, for those who want to see or change what passes between them.

python -m data_tools.steps sentences --input dump.xml.bz2 --output sentences.txt        one a line, a blank line between documents
python -m data_tools.steps tokenizer --input sentences.txt --splitter lines --vocab-size 32000 --output-dir tokenizer
python -m data_tools.prepare --input sentences.txt --splitter lines --tokenizer tokenizer --output-dir corpus
"""

import argparse
import shutil
import signal
import sys
import tempfile
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import numpy as np

from data_tools.collecting import describe_sentences, list_inputs, sample_sentences, spool_sentences, tell_found
from data_tools.errors import UserError, naming, run_command
from data_tools.options import add_input, add_seed, add_sentences, add_vocabulary, check_values, fill_vocabulary, new_parser
from data_tools.sources import MAX_PARAGRAPHS
from data_tools.splits import TRAIN
from data_tools.spool import Spool
from data_tools.vocabulary import FILES, export_tokenizer, train_vocabulary
from data_tools.work import Work
from data_tools.workers import mpi_workers


def collect(options: argparse.Namespace, folder: Path) -> Spool:
    """The sentences of the inputs, in a temporary folder. Raises UserError when there are none."""
    inputs = list_inputs(options.input, besides=getattr(options, "output", None))
    spool, facts = spool_sentences(options, describe_sentences(options, inputs), inputs, Work(folder))
    tell_found(options, len(inputs), spool, facts)
    return spool


def write_sentences(options: argparse.Namespace) -> None:
    """`sentences`: text that prepare reads again with --splitter lines."""
    target = options.output.resolve()  # of a link the file that it leads to
    if options.output.is_dir():
        raise UserError(f"--output {options.output}: expected a file to write, found a folder; name a file in it")
    for flag, names in (("--input", options.input), ("--exclude", options.exclude)):
        if any(target == Path(name).resolve() for name in names):
            raise UserError(f"--output {options.output}: expected a file of its own, found that of {flag}; name another")
    is_stream = options.output.exists() and not options.output.is_file()  # /dev/stdout, a pipe: only sentences go there
    if not is_stream:
        target.parent.mkdir(parents=True, exist_ok=True)
    with (
        redirect_stdout(sys.stderr) if is_stream else nullcontext(),
        tempfile.TemporaryDirectory(dir=None if is_stream else target.parent, prefix=".work-") as folder,
    ):
        spool = collect(options, Path(folder))
        longest = int(spool.num_sentences.max())
        if longest >= MAX_PARAGRAPHS:
            print(f"notice: a document has {longest:,} sentences; read again from {options.output} it is several: give prepare the inputs")
        path = options.output if is_stream else Path(folder) / "output.txt"
        with open(path, "w", encoding="utf-8") as output:
            for offset, documents in spool.blocks():
                sentences = iter(spool.read(offset, documents))
                for count in spool.num_sentences[documents].tolist():
                    if count:
                        output.writelines(f"{next(sentences)}\n" for _ in range(count))
                        output.write("\n")
        if not is_stream:
            path.replace(target)
        print(options.output)


def write_tokenizer(options: argparse.Namespace) -> None:
    """`tokenizer`: a folder for prepare's --tokenizer, trained on a random sample of all sentences."""
    fill_vocabulary(options)
    if options.output_dir.exists() and (not options.output_dir.is_dir() or any(options.output_dir.iterdir())):
        raise UserError(f"--output-dir {options.output_dir}: expected a new or empty folder; give another")
    options.output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output_dir.parent, prefix=".work-") as folder:
        spool = collect(options, Path(folder))
        sample = sample_sentences(spool, np.full(len(spool.num_sentences), TRAIN, np.uint8), options.seed)
        model = train_vocabulary(sample, options.vocab_size, options.model_type, options.character_coverage, options.byte_fallback)
        export_tokenizer(model, Path(folder) / "tokenizer")
        options.output_dir.mkdir(exist_ok=True)
        for name in FILES:
            shutil.move(Path(folder) / "tokenizer" / name, options.output_dir / name)  # which may be a disk of its own
    print(options.output_dir)


def main() -> None:
    """The command."""
    parser = new_parser("steps", __doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    sentences = steps.add_parser("sentences", help="inputs -> sentences, a line each")
    sentences.add_argument("--output", type=Path, required=True, metavar="FILE")
    tokenizer = steps.add_parser("tokenizer", help="inputs -> a tokenizer folder")
    tokenizer.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    for step in (sentences, tokenizer):
        add_input(step)
        add_sentences(step)
    add_seed(tokenizer)
    add_vocabulary(tokenizer)
    with mpi_workers() as is_first:
        if is_first:
            options = parser.parse_args()
            check_values(options)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind beside the output
            is_text = options.step == "sentences"
            with naming(options.output if is_text else options.output_dir):
                (write_sentences if is_text else write_tokenizer)(options)


if __name__ == "__main__":
    run_command(main)
