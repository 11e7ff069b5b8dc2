"""The commands, end to end on small invented text: what a corpus holds, and what the user's mistakes get."""

import errno
import hashlib
import html
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset
from transformers import AutoTokenizer

from data_tools import lock
from data_tools import prepare as prepare_command
from data_tools.corpus import MANIFEST_NAME, SPLITS, Corpus
from data_tools.duplicates import first_occurrences
from data_tools.errors import UserError
from data_tools.exclusions import read_exclusions
from data_tools.filters import content_key
from data_tools.findings import Findings
from data_tools.hub import read_dataset
from data_tools.page import render
from data_tools.sentences import split_sentences
from data_tools.splits import TEST, TRAIN, UNUSED, VALID, assign_documents, held_out_sizes
from data_tools.vocabulary import FILES, check_export, load_processor
from data_tools.work import Work
from data_tools.workers import ordered_map

SYLLABLES = "가나다라마바사아자차카타파하고노도로모보소오조초코토포호"


def invented_documents(count: int, seed: int) -> list[list[str]]:
    """Documents of sentences, each of which is unique."""
    generator = random.Random(seed)
    words = ["".join(generator.choice(SYLLABLES) for _ in range(generator.randint(1, 4))) for _ in range(800)]
    return [
        [
            f"{' '.join(generator.choice(words) for _ in range(generator.randint(3, 9)))} {document}의 {number}이다."
            for number in range(generator.randint(1, 20))
        ]
        for document in range(count)
    ]


DOCUMENTS = invented_documents(120, 0)


LEFT_OUT = ("short", "long", "script", "excluded", "duplicates")
FORTY = "".join(f"가 나 다 {number}.\n\n" for number in range(40))


def run(*arguments: object) -> None:
    prepare_command.prepare(prepare_command.parse_arguments([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(" ".join(document) for document in DOCUMENTS) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def corpus_dir(text_file: Path) -> Path:
    folder = text_file.parent / "corpus"
    run("--input", text_file, "--output-dir", folder, "--vocab-size", 200, "--workers", 1)
    return folder


def test_items_are_the_sentences_of_whole_documents(corpus_dir: Path) -> None:
    corpus = Corpus.open(corpus_dir)
    corpus.verify()
    processor = load_processor(corpus.tokenizer_dir)
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
    place_of = {tuple(processor.encode(document[0])): index for index, document in enumerate(DOCUMENTS)}
    seen = []
    for name in SPLITS:
        dataset, oracle = corpus.split(name), MMapIndexedDataset(str(corpus_dir / name), skip_warmup=True)
        assert dataset.tokens.dtype == np.uint16 and oracle.doc_idx.tolist() == dataset.document_index.tolist()
        order = []
        for first, last in zip(dataset.document_index[:-1], dataset.document_index[1:], strict=True):
            place = place_of[tuple(dataset[first].tolist())]
            sentences = DOCUMENTS[place]
            assert [oracle[item].tolist() for item in range(first, last)] == tokenizer(sentences, add_special_tokens=False)["input_ids"]
            assert [dataset[item].tolist() for item in range(first, last)] == processor.encode(sentences)
            order.append(place)
        assert order == sorted(order)  # documents in the order of the input
        seen += order
    assert sorted(seen) == list(range(len(DOCUMENTS)))


def test_the_manifest_tells_the_counts(corpus_dir: Path) -> None:
    corpus = Corpus.open(corpus_dir)
    total = sum(map(len, DOCUMENTS))
    counts = corpus.manifest["splits"]
    assert sum(count["sentences"] for count in counts.values()) == total
    assert sum(count["characters"] for count in counts.values()) == sum(len(sentence) for document in DOCUMENTS for sentence in document)
    for name in SPLITS:
        dataset = corpus.split(name)
        assert counts[name]["sentences"] == len(dataset) and counts[name]["tokens"] == len(dataset.tokens)
        assert counts[name]["documents"] == len(dataset.document_index) - 1 > 0
        assert counts[name]["unknown"] == (dataset.tokens == 3).sum()
    assert counts["valid"]["sentences"] + counts["test"]["sentences"] <= total / 10 + 1
    assert corpus.vocab_size == 200 and len(corpus.manifest["notices"]) == 2
    assert str(corpus_dir.parent) not in (corpus_dir / MANIFEST_NAME).read_text()
    assert sorted(path.name for path in corpus_dir.iterdir()) == sorted(
        [f"{name}{end}" for name in SPLITS for end in (".bin", ".idx")] + [MANIFEST_NAME, "tokenizer"]
    )


def test_same_bytes_whatever_the_workers(
    corpus_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data_tools.spool.BLOCK_BYTES", 2000)  # many tasks; must not show either
    run("--input", text_file, "--output-dir", tmp_path / "c", "--vocab-size", 200, "--workers", 3)
    assert Corpus.open(tmp_path / "c").manifest == Corpus.open(corpus_dir).manifest
    Corpus.open(tmp_path / "c").verify()
    run("--input", text_file, "--output-dir", tmp_path / "c", "--vocab-size", 200)
    assert "already there" in capsys.readouterr().out
    other_file = tmp_path / "other"
    changes = (
        ("--seed", 1), ("--vocab-size", 199), ("--model-type", "bpe"), ("--character-coverage", 0.99), ("--byte-fallback",),
        ("--valid-sentences", 5), ("--test-sentences", 5), ("--max-train-sentences", 50), ("--token-dtype", "int32"),
        ("--splitter", "lines"), ("--min-characters", 3), ("--max-characters", 300), ("--script", "hangul"), ("--keep-duplicates",),
        ("--exclude", text_file),
        ("--input", text_file, other_file),
    )  # fmt: skip
    other_file.write_text(FORTY)
    names = [changed[0][2:].replace("-", "_").replace("input", "inputs") for changed in changes]
    assert {*names, "tokenizer_sha256"} == set(Corpus.open(corpus_dir).manifest["settings"])
    for name, changed in zip(names, changes, strict=True):
        with pytest.raises(UserError, match=f"differs in {name};"):
            run("--input", text_file, "--output-dir", tmp_path / "c", "--vocab-size", 200, *changed)


def test_a_tokenizer_is_reused_and_sizes_are_held(corpus_dir: Path, text_file: Path, tmp_path: Path) -> None:
    model = shutil.copytree(corpus_dir / "tokenizer", tmp_path / "model")  # a model's folder: its weights are not the tokenizer's
    (model / "model.safetensors").write_text("weights")
    (model / "folder").mkdir()
    options = ("--tokenizer", model, "--token-dtype", "int32", "--seed", 3, "--workers", 1)
    run(
        "--input",
        text_file,
        "--output-dir",
        tmp_path / "c",
        *options,
        "--valid-sentences",
        90,
        "--test-sentences",
        0,
        "--max-train-sentences",
        300,
    )
    corpus = Corpus.open(tmp_path / "c")
    assert [corpus.manifest["splits"][name]["sentences"] for name in SPLITS] == [300, 90, 0]
    assert corpus.split("train").tokens.dtype == np.int32 and len(corpus.split("test")) == 0 and corpus.vocab_size == 200
    oracle = MMapIndexedDataset(str(tmp_path / "c" / "train"), skip_warmup=True)  # kept alive: its items are views
    assert oracle[7].tolist() == corpus.split("train")[7].tolist()
    assert sorted(file.name for file in (tmp_path / "c" / "tokenizer").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "c/tokenizer" / name).read_bytes() == (corpus_dir / "tokenizer" / name).read_bytes()
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config\.json in it, found none"):
        run("--input", text_file, "--output-dir", tmp_path / "d", *options)
    options = ("--tokenizer", corpus_dir / "tokenizer", *options[2:])
    with pytest.raises(UserError, match="--vocab-size 99: expected 200"):
        run("--input", text_file, "--output-dir", tmp_path / "d", *options, "--vocab-size", 99)


def test_an_interrupted_run_leaves_no_corpus_and_the_next_one_succeeds(
    corpus_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--input", text_file, "--output-dir", tmp_path / "c", "--vocab-size", 200, "--workers", 1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("encode_block", "write_manifest", "make_tokenizer"):
        with monkeypatch.context() as patch:
            patch.setattr(prepare_command, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(*arguments)
        with pytest.raises(UserError, match=f"no {MANIFEST_NAME}"):
            Corpus.open(tmp_path / "c")
    run(*arguments)
    assert Corpus.open(tmp_path / "c").fingerprint == Corpus.open(corpus_dir).fingerprint


def test_damaged_corpora_are_refused(corpus_dir: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=r"make one with: python -m data_tools.prepare"):
            Corpus.open(path)
    copy = tmp_path / "copy"
    (copy / "tokenizer").mkdir(parents=True)
    for file in corpus_dir.rglob("*.*"):
        (copy / file.relative_to(corpus_dir)).write_bytes(file.read_bytes())
    data = (copy / "train.bin").read_bytes()
    (copy / "train.bin").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(UserError, match=r"train.bin.*SHA-256"):
        Corpus.open(copy).verify()
    (copy / "train.bin").write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"train.bin: expected \d+ bytes"):
        Corpus.open(copy)
    (copy / "train.bin").unlink()
    with pytest.raises(UserError, match=r"train.bin: expected by"):
        Corpus.open(copy)
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    manifest["outputs"]["train.bin"]["sha256"] = "0" * 64
    for text in ("{", "[]", "{}", json.dumps(manifest)):
        (copy / MANIFEST_NAME).write_text(text)
        with pytest.raises(UserError, match=MANIFEST_NAME):
            Corpus.open(copy)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("", (), "found 0 sentences"),
        ("...\n\n!!\n", (), "found 0 sentences"),
        (FORTY, ("--script", "latin"), "found 40 sentences, left out of them: script 40"),
        (FORTY, ("--min-characters", 50, "--max-characters", 49), "--min-characters 50: expected at most --max-characters, 49"),
        ("".join(f"{n} 한 문서이다. {n} 둘이다. {n} 셋이다.\n" for n in range(9)), (), "at least 3 documents"),
        (FORTY, ("--vocab-size", 5000), "--vocab-size 5000.*smaller --vocab-size"),
        (FORTY, ("--valid-sentences", 30), "at most half"),
        (FORTY, ("--workers", 0), "--workers 0"),
        (FORTY, ("--character-coverage", 0), "--character-coverage 0.0: expected 0.98 to 1"),
        (FORTY, ("--input", ""), "--input '': .*found an empty name"),
        (FORTY, ("--max-train-sentences", -5), "--max-train-sentences -5"),
        (FORTY, ("--tokenizer", "nowhere"), "nowhere: expected a tokenizer folder"),
        (FORTY, ("--test-sentences", 0, "--valid-sentences", 39), "39 sentences for valid and 0 for test: expected at most half"),
        (FORTY, ("--output-dir", __file__), "found a file"),
        (FORTY, ("--output-dir", ""), "--output-dir: expected the name of a place"),
        (FORTY, ("--input", "hf:"), "--input hf:: expected hf:DATASET"),
        (FORTY, ("--output-dir", Path(__file__).parent), "expected an empty folder"),
    ],
)
def test_mistakes_get_one_clear_error_and_no_corpus(tmp_path: Path, content: str, arguments: tuple, message: str) -> None:
    (tmp_path / "text").write_text(content)
    with pytest.raises(UserError, match=message):
        run("--input", tmp_path / "text", "--output-dir", tmp_path / "c", "--workers", 1, *arguments)
    assert not (tmp_path / "c" / MANIFEST_NAME).exists()


def test_files_of_others_are_left_alone(tmp_path: Path, text_file: Path, corpus_dir: Path) -> None:
    shutil.copytree(corpus_dir / "tokenizer", tmp_path / "c" / "tokenizer")
    (tmp_path / "c" / "train.bin").write_bytes(b"mine")
    inside = "found one inside"  # to copy it would be to copy what has just been removed
    for arguments, message in (((), "expected an empty folder, found tokenizer"), (("--tokenizer", tmp_path / "c" / "tokenizer"), inside)):
        with pytest.raises(UserError, match=message):
            run("--input", text_file, "--output-dir", tmp_path / "c", *arguments)
    assert (tmp_path / "c" / "train.bin").read_bytes() == b"mine" and len(list((tmp_path / "c" / "tokenizer").iterdir())) == 3


def test_a_given_tokenizer_has_its_settings_already(tmp_path: Path, text_file: Path, corpus_dir: Path) -> None:
    for flags in (("--model-type", "bpe"), ("--byte-fallback",), ("--character-coverage", 0.99)):
        with pytest.raises(UserError, match=f"{flags[0]}: expected none with --tokenizer"):
            run("--input", text_file, "--output-dir", tmp_path / "c", "--tokenizer", corpus_dir / "tokenizer", *flags)
    run("--input", text_file, "--output-dir", tmp_path / "c", "--tokenizer", corpus_dir / "tokenizer", "--workers", 1)
    settings = Corpus.open(tmp_path / "c").manifest["settings"]
    assert [settings[name] for name in ("model_type", "character_coverage", "byte_fallback")] == [None, None, None]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    text, output = (tmp_path / os.fsdecode(name.encode("euc-kr")) for name in ("한국어.txt", "말뭉치"))
    text.write_text("\n\n".join(f"{' '.join(document)}" for document in invented_documents(60, 1)))
    run("--input", text, "--output-dir", output, "--vocab-size", 150, "--workers", 1)
    run("--input", text, "--output-dir", output, "--vocab-size", 150, "--workers", 1)  # it knows its own inputs
    assert Corpus.open(output).manifest["settings"]["inputs"][0]["name"] == text.name


INTERRUPTED = """
from data_tools.errors import run_command
from data_tools.workers import ordered_map
def main():
    for number, _ in enumerate(ordered_map(bytes, (3_000_000 for _ in range(100_000)), 2)):
        if number == 20:
            print("now", flush=True)
if __name__ == "__main__":
    run_command(main)
"""


def test_ctrl_c_ends_it_with_one_word_and_at_once(tmp_path: Path) -> None:
    """Sent to all processes, as a terminal does, while they send large results; half a one would leave the parent waiting for the rest."""
    (tmp_path / "script.py").write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    for pause in (0.0, 0.11, 0.23):
        with subprocess.Popen(
            [sys.executable, tmp_path / "script.py"], stdout=-1, stderr=-1, text=True, start_new_session=True, env=environment
        ) as process:
            assert process.stdout and process.stdout.readline() == "now\n"
            time.sleep(pause)
            os.killpg(process.pid, signal.SIGINT)
            try:
                _, said = process.communicate(timeout=60)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        assert (process.returncode, said) == (130, "interrupted\n"), said


def test_ctrl_c_is_heard_while_sentencepiece_trains(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TRAINING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=-1, stderr=-1, text=True, env=environment) as process:
        assert process.stdout and process.stdout.readline() == "now\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=15)  # training takes half a minute
        finally:
            process.kill()
    assert (process.returncode, said) == (130, "interrupted\n"), said


TRAINING = """
import random
from data_tools.errors import run_command
from data_tools.vocabulary import train_vocabulary
def sentences():
    for _ in range(100_000):
        yield " ".join("".join(map(chr, random.choices(range(0xac00, 0xb400), k=random.randint(2, 8)))) for _ in range(12))
    print("now", flush=True)
if __name__ == "__main__":
    run_command(lambda: train_vocabulary(sentences(), 8000, "unigram", 0.9995, False) and print("trained"))
"""


def test_a_worker_that_is_ended_from_outside_is_told(tmp_path: Path) -> None:
    calls = "ordered_map(bytes, (3_000_000 for _ in range(100_000)), 2)"
    (tmp_path / "script.py").write_text("import os" + INTERRUPTED.replace(calls, "ordered_map(os._exit, iter([1] * 9), 2)"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert done.returncode == 1 and done.stderr.startswith("error: a worker process was ended from outside"), done.stderr


def test_split_sizes() -> None:
    assert held_out_sizes(4_190_000, None, None) == (100_000, 88_000, [])
    valid, test, notices = held_out_sizes(10_000, None, None)
    assert (valid, test) == (532, 468) and len(notices) == 2
    assert held_out_sizes(10_000, 2000, None)[:2] == (2000, 468)
    sizes = np.array([3, 50, 2, 2, 40, 1, 1, 30])
    assignment = assign_documents(sizes, 4, 3, 60, 0)
    totals = [int(sizes[assignment == split].sum()) for split in (TRAIN, VALID, TEST)]
    assert 0 < totals[0] <= 60 and totals[1:] == [4, 3] and (assignment == UNUSED).any()
    assert (assign_documents(sizes, 4, 3, 60, 0) == assignment).all() and (assign_documents(sizes, 4, 3, 60, 1) != assignment).any()
    assert assign_documents(np.array([9, 8, 7]), 1, 1, None, 0).tolist() == [TRAIN, TEST, VALID]  # the smallest, when none fits
    for seed in range(6):  # small ones that all fit into the first split: each split still gets one
        assert sorted(assign_documents(np.array([1, 1, 600]), 30, 26, None, seed).tolist()) == sorted([TRAIN, VALID, TEST])
        assert assign_documents(np.array([1, 1, 600]), 30, 26, None, seed)[2] == TRAIN


def test_the_commands_as_launched(text_file: Path, corpus_dir: Path, tmp_path: Path) -> None:
    def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)

    (tmp_path / "file").write_text("")
    for said, arguments in (
        ("error: --input", ("prepare", "--input", tmp_path / "none", "--output-dir", tmp_path / "c")),
        ("error: --seed -1", ("prepare", "--input", text_file, "--output-dir", tmp_path / "c", "--seed", -1)),
        (f"error: {tmp_path / 'file'}", ("prepare", "--input", text_file, "--output-dir", tmp_path / "file" / "x")),
        (f"error: {tmp_path / 'file'}", ("steps", "sentences", "--input", text_file, "--output", tmp_path / "file" / "x")),
        (f"error: {tmp_path / 'file'}", ("world", "--output-dir", tmp_path / "file" / "x")),
    ):
        missing = launch("-m", f"data_tools.{arguments[0]}", *arguments[1:])
        assert missing.returncode == 2 and missing.stderr.startswith(said) and missing.stderr.count("\n") == 1, missing.stderr
    report = launch("-m", "data_tools.inspect", corpus_dir, "--verify", "--samples", 2)
    assert report.returncode == 0 and report.stderr == ""
    sentences = {sentence for document in DOCUMENTS for sentence in document}
    samples = [line.split("] ", 1)[1] for line in report.stdout.splitlines() if line.startswith("  [")]
    assert len(samples) == 6 and set(samples) <= sentences
    assert str(Corpus.open(corpus_dir).manifest["splits"]["train"]["tokens"]) in report.stdout
    damaged = shutil.copytree(corpus_dir, tmp_path / "damaged") / "train.bin"
    data = damaged.read_bytes()
    damaged.write_bytes(bytes([data[0] ^ 1]) + data[1:])  # of the same size: only --verify sees it
    for flags, status in (((), 0), (("--verify",), 2)):
        assert launch("-m", "data_tools.inspect", damaged.parent, *flags).returncode == status
    assert launch("-m", "data_tools.inspect", tmp_path).returncode == 2
    light = "import sys, data_tools.prepare, data_tools.inspect; assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    assert launch("-c", light).returncode == 0


def test_the_findings_are_recounted(corpus_dir: Path, tmp_path: Path) -> None:
    run("--input", corpus_dir.parent / "text.txt", "--output-dir", tmp_path / "c", "--vocab-size", 460, "--byte-fallback",
        "--character-coverage", 0.98, "--workers", 1)  # fmt: skip
    corpus = Corpus.open(tmp_path / "c")
    processor, dataset = load_processor(corpus.tokenizer_dir), corpus.split("train")
    findings = Findings.of(corpus, num_samples=3, seed_model=str(corpus_dir / "tokenizer"))
    in_bytes = sum(processor.is_byte(piece) for piece in dataset.tokens.tolist())
    assert in_bytes and findings.byte_fallback["train"] == pytest.approx(in_bytes / len(dataset.tokens)) and findings.unknown["train"] == 0
    texts = [processor.decode(dataset[item].tolist()) for item in range(len(dataset))]
    words = sum(len(text.split()) for text in texts)
    other = sum(len(load_processor(corpus_dir / "tokenizer").encode(text)) for text in texts)
    assert [f.tokens_per_word for f in findings.fertility] == pytest.approx([len(dataset.tokens) / words, other / words])
    assert sum(count for _, count in findings.histogram) == len(dataset)
    assert dict(findings.histogram)["10-14"] == ((dataset.sizes >= 10) & (dataset.sizes < 15)).sum()
    page = render(findings)
    assert html.escape(findings.samples["test"][0].text) in page and "src=" not in page and "href=" not in page
    ElementTree.fromstring(re.sub("<meta[^>]*>|<!doctype html>|<br>", "", page))  # every element is closed


def test_a_killed_run_takes_its_workers_along(tmp_path: Path) -> None:
    command = (
        "import os, signal, sys, time; from data_tools.workers import ordered_map\n"
        "if __name__ == '__main__':\n"
        "    results = ordered_map(os.path.getsize, iter(['/'] * 9), 2); next(results)\n"
        "    import multiprocessing; print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "script.py").write_text(command)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 100
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.05)


def test_a_json_text_with_half_a_surrogate_pair_is_survived(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{document[0]} \ud83d 끝이다."}) for document in DOCUMENTS]
    (tmp_path / "text").write_text("\n".join(lines))
    run("--input", tmp_path / "text", "--output-dir", tmp_path / "c", "--vocab-size", 100, "--workers", 1)
    assert len(split_sentences(DOCUMENTS[0][0])) == 1 and Corpus.open(tmp_path / "c").manifest["documents"]["found"] == len(DOCUMENTS)


def test_what_is_left_out_is_left_out_and_counted(tmp_path: Path) -> None:
    """Against sets in memory: duplicates (the first stays), lengths, script, and the sentences of evaluation files."""
    documents = [[*sentences] for sentences in invented_documents(60, 1)]
    documents[30] += [*documents[2][:3], "짧", "긴 " * 200 + "문장이다.", "This one is English, mostly, 그렇다."]
    documents[40] = [*documents[5]]  # nothing of it is left
    secret = [documents[7][0], documents[9][-1], documents[2][0]]
    rows = [{"guid": "x", "sentence": f"{secret[0]}  {secret[1]}"}, {"sentence": secret[2].replace(" ", ", ").upper()}]
    (tmp_path / "klue.json").write_text(json.dumps(rows))
    (tmp_path / "text").write_text("\n\n".join("\n".join(document) for document in documents))
    options = ("--vocab-size", 150, "--max-characters", 300, "--script", "hangul", "--exclude", tmp_path / "klue.json")
    run("--input", tmp_path / "text", "--output-dir", tmp_path / "c", *options, "--workers", 1)
    expected, seen = [], set(secret)
    for document in documents:
        for sentence in document:
            if sentence not in seen and 2 <= len(sentence) <= 300 and "English" not in sentence:
                expected.append(sentence)
            seen.add(sentence)
    corpus = Corpus.open(tmp_path / "c")
    processor = load_processor(corpus.tokenizer_dir)
    found = [processor.decode(dataset[i].tolist()) for dataset in map(corpus.split, SPLITS) for i in range(len(dataset))]
    assert sorted(found) == sorted(expected)
    total = sum(map(len, documents))
    twice = len(documents[5]) + 3 - (documents[2][0] == secret[2])
    counts = {"found": total, "short": 1, "long": 1, "script": 1, "excluded": 4, "duplicates": twice}
    assert corpus.manifest["sentences"] == counts and 2 * total - sum(counts.values()) == len(expected)
    with pytest.raises(UserError, match="differs in exclude"):
        run("--input", tmp_path / "text", "--output-dir", tmp_path / "c", *options[:-2])
    for output in ("c", "d"):
        with pytest.raises(UserError, match=r"--exclude .*none"):
            run("--input", tmp_path / "text", "--output-dir", tmp_path / output, *options[:-1], tmp_path / "none")


def test_equal_text_is_a_duplicate_however_it_is_written(tmp_path: Path) -> None:
    documents = [" ".join(sentences) for sentences in invented_documents(60, 1)]
    again = [unicodedata.normalize("NFD", documents[3]), documents[4].replace(" ", "\u200b \u202a", 1), documents[5].replace("다", "다", 1)]
    (tmp_path / "text").write_text("\n\n".join([*documents, *again, "\u3164\u3164\u3164 \u3164"]))
    run("--input", tmp_path / "text", "--output-dir", tmp_path / "c", "--vocab-size", 150, "--workers", 1)
    corpus = Corpus.open(tmp_path / "c")
    found, splits = corpus.manifest["sentences"], corpus.manifest["splits"].values()
    repeated = sum(len(split_sentences(documents[number])) for number in (3, 4, 5))
    assert found["duplicates"] == repeated, found
    assert sum(split["empty"] for split in splits) == 1
    assert sum(split["sentences"] + split["empty"] for split in splits) == found["found"] - found["duplicates"] - found["short"]


def test_notes_and_columns_hide_no_evaluation_sentence(tmp_path: Path) -> None:
    (tmp_path / "sts.tsv").write_text("id\t가나다라마바사아자차카타\t하나 둘 셋 넷 다섯 여섯 일곱\n")
    keys = read_exclusions([tmp_path / "sts.tsv"], lambda text: [text])
    (tmp_path / "sts.csv").write_text('id,one,two\n1,"가나다라마바사, 아자차카타",하나 둘 셋 넷 다섯 여섯 일곱\n')
    for found in (keys, read_exclusions([tmp_path / "sts.csv"], lambda text: [text])):
        for text in ("가나다라마바사아자차카타.[1]", "하나 둘 셋 넷 다섯, 여섯 일곱[12][3] "):
            assert np.uint64(content_key(text)) in found, text
    (tmp_path / "text").write_text("가나다라마바사, 아자차카타\n하나 둘 셋 넷 다섯 여섯 일곱이다\n")  # commas, and no table
    assert len(read_exclusions([tmp_path / "text"], lambda text: [text])) == 2


def test_evaluation_files_of_any_shape_are_read_whole_or_refused(tmp_path: Path) -> None:
    rows = [{"guid": f"g{number}", "sentence": f"{number}번째 문장은\u2028가나다라마바사이다."} for number in range(9)]
    shapes = {
        "array": json.dumps(rows, ensure_ascii=False),
        "lines": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "text": "\n".join(row["sentence"].replace("\u2028", " ") for row in rows),
    }
    keys = {}
    for name, content in shapes.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        keys[name] = read_exclusions([tmp_path / name], lambda text: [text])
    assert len(keys["array"]) == 9 and all((found == keys["array"]).all() for found in keys.values())
    for name, content in (
        ("numbers first", '[12, "가나다라마바사아자차카타파하"]'),
        ("lists", '[["가나다라마바사아자차카타파하"]]\n[[1, "가나다라마바사아자차카"]]'),
        ("wiki", "[[서울]]은 한국의 수도이고 가나다라마바사이다.\n[1] 가나다라마바사아자차카타"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert len(read_exclusions([tmp_path / name], lambda text: [text])) == (1 if name == "numbers first" else 2), name
    for name in ("array", "lines"):
        (tmp_path / name).write_text(shapes[name][:-20], encoding="utf-8")
        with pytest.raises(UserError, match="begins as JSON, but is neither"):
            read_exclusions([tmp_path / name], lambda text: [text])


def test_a_folder_without_locks_is_used_and_one_that_is_left_can_be_held_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock.hold(tmp_path / "new")
    lock.release(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    lock.hold(tmp_path / "new")
    assert "process" in (tmp_path / "new" / "lock").read_text()

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    lock.hold(tmp_path / "other")
    assert "has no locks" in capsys.readouterr().out


def test_a_second_start_waits_for_the_first(text_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_tools.prepare", "--input", text_file, "--output-dir", tmp_path / "c", "--vocab-size", "200",
               "--workers", "1"]  # fmt: skip
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("done; look inside" in text for text in said) == [False, True]
    Corpus.open(tmp_path / "c").verify()
    assert sorted(entry.name for entry in (tmp_path / "c").iterdir() if not entry.name.startswith(".")) == sorted(
        [MANIFEST_NAME, "tokenizer", *(f"{split}{end}" for split in SPLITS for end in (".bin", ".idx"))]
    )


def test_duplicates_in_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 3000, np.uint64)[np.random.default_rng(1).integers(0, 3000, 20_000)]
    hashes.tofile(tmp_path / "hashes")
    expected = np.zeros(len(hashes), bool)
    expected[np.unique(hashes, return_index=True)[1]] = True
    for size in (1 << 22, 5000, 300):
        monkeypatch.setattr("data_tools.duplicates.PARTITION", size)
        assert (first_occurrences(tmp_path / "hashes") == expected).all()


def test_finished_steps_are_reused(
    corpus_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--input", text_file, "--output-dir", tmp_path / "c", "--workers", 1)
    with pytest.raises(UserError, match="smaller --vocab-size"):
        run(*arguments, "--vocab-size", 60_000)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(prepare_command, "encode_splits", lambda *_: 1 / 0)
        run(*arguments, "--vocab-size", 200)
    assert "the sentences are already there" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(prepare_command, "train_vocabulary", None)
        patch.setattr("data_tools.collecting.read_documents", None)
        run(*arguments, "--vocab-size", 200)
    assert "the tokenizer is already there" in capsys.readouterr().out
    assert Corpus.open(tmp_path / "c").manifest == Corpus.open(corpus_dir).manifest


def test_finished_steps_of_other_settings_or_code_are_made_anew(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(prepare_command, "encode_splits", lambda *_: 1 / 0)
        run("--input", text_file, "--output-dir", tmp_path / "c", "--vocab-size", 200, "--workers", 1)
    for name in "cd":
        run("--input", text_file, "--output-dir", tmp_path / name, "--vocab-size", 180, "--min-characters", 20, "--workers", 1)
    assert Corpus.open(tmp_path / "c").manifest == Corpus.open(tmp_path / "d").manifest
    assert Corpus.open(tmp_path / "c").vocab_size == 180 and Corpus.open(tmp_path / "c").manifest["sentences"]["short"] > 0
    work = Work(tmp_path / "work")
    assert work.finished("step", {"a": 1}) is None and work.finish("step", {"a": 1}, {"b": 2}) == work.finished("step", {"a": 1})
    monkeypatch.setattr("data_tools.work._code_sha256", lambda: "of another version")
    assert work.finished("step", {"a": 1}) is None


def test_the_vocabulary_sees_a_sample_of_the_training_sentences_alone(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[list[str]] = []
    train = prepare_command.train_vocabulary

    def trained(sentences: Iterable[str], *settings: Any) -> bytes:
        samples.append(list(sentences))
        return train(samples[-1], *settings)

    monkeypatch.setattr(prepare_command, "train_vocabulary", trained)
    arguments = ("--input", text_file, "--vocab-size", 200, "--keep-duplicates", "--valid-sentences", 200, "--workers", 1)
    run(*arguments, "--output-dir", tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    processor, split = load_processor(corpus.tokenizer_dir), corpus.split("train")
    assert [processor.encode(sentence) for sentence in samples[0]] == [split[number].tolist() for number in range(len(split))]
    monkeypatch.setattr("data_tools.collecting.SAMPLE_SENTENCES", len(split) // 2)
    run(*arguments, "--output-dir", tmp_path / "d")
    assert 0.4 * len(split) < len(samples[1]) < 0.6 * len(split) and set(samples[1]) < set(samples[0])


def test_duplicates_are_kept_and_lines_left_whole_where_that_is_asked_for(tmp_path: Path) -> None:
    documents = invented_documents(60, 1)
    (tmp_path / "text").write_text("\n\n".join("\n".join([*document, " ".join(documents[3][:2])]) for document in documents))
    options = ("--keep-duplicates", "--splitter", "lines", "--vocab-size", 150, "--workers", 1)
    run("--input", tmp_path / "text", "--output-dir", tmp_path / "c", *options)
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.manifest["sentences"] == {"found": sum(map(len, documents)) + 60, **dict.fromkeys(LEFT_OUT, 0)}
    assert sum(len(corpus.split(name)) for name in SPLITS) == sum(map(len, documents)) + 60


def test_no_more_tasks_are_under_way_than_workers_need() -> None:
    begun = []
    results = ordered_map(bytes, (begun.append(number) or number for number in range(99)), 2)
    assert next(results) == b"" and len(begun) <= 8
    assert len(list(results)) == 98


def test_a_dataset_folder_is_read_in_streaming_mode(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = "".join(json.dumps({"title": str(i), "text": "\n".join(document)}) + "\n" for i, document in enumerate(DOCUMENTS))
    (tmp_path / "data" / "train.jsonl").write_text(rows)
    run("--input", f"hf:{tmp_path / 'data'}", "--output-dir", tmp_path / "hf", "--vocab-size", 200, "--workers", 1)
    run("--input", tmp_path / "data", "--output-dir", tmp_path / "file", "--vocab-size", 200, "--workers", 1)
    assert Corpus.open(tmp_path / "hf").fingerprint == Corpus.open(tmp_path / "file").fingerprint
    assert len(next(iter(Corpus.open(tmp_path / "hf").manifest["datasets_sha256"].values()))) == 64
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps({"title": "x", "text": None}) + "\n" + rows)
    with pytest.raises(UserError, match="differs in inputs"):  # a row more, in a folder of the same name
        run("--input", f"hf:{tmp_path / 'data'}", "--output-dir", tmp_path / "hf", "--vocab-size", 200, "--workers", 1)
    run("--input", f"hf:{tmp_path / 'data'}", "--output-dir", tmp_path / "null", "--vocab-size", 200, "--workers", 1)
    again = Corpus.open(tmp_path / "null")
    assert again.fingerprint == Corpus.open(tmp_path / "hf").fingerprint and again.manifest["documents"]["without_sentences"] == 1
    with pytest.raises(UserError, match=r"--input hf:.*nowhere"):
        run("--input", f"hf:{tmp_path / 'nowhere'}", "--output-dir", tmp_path / "d", "--workers", 1)
    # hf:DATASET:CONFIG is that part of the dataset and no other
    (tmp_path / "data" / "other.jsonl").write_text(json.dumps({"text": "다른 글이다."}) + "\n")
    parts = "".join(f"- config_name: {name}\n  data_files: {file}\n" for name, file in (("whole", "train.jsonl"), ("part", "other.jsonl")))
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    assert [document.text for document in read_dataset(f"hf:{tmp_path / 'data'}:part", 0, hashlib.sha256())] == ["다른 글이다."]


def test_the_steps_one_by_one_make_the_same_corpus(corpus_dir: Path, text_file: Path, tmp_path: Path) -> None:
    def launch(*words: object) -> str:
        done = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    launch("data_tools.steps", "sentences", "--input", text_file, "--output", tmp_path / "new" / "sentences")  # as our own work is called
    documents = (tmp_path / "new" / "sentences").read_text().strip().split("\n\n")
    assert [document.split("\n") for document in documents] == DOCUMENTS
    launch(
        "data_tools.steps", "tokenizer", "--input", text_file, "--vocab-size", 150, "--model-type", "bpe", "--output-dir", tmp_path / "t"
    )
    assert check_export(tmp_path / "t").vocab_size() == 150
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == sorted(FILES)
    lines = ("--input", tmp_path / "new" / "sentences", "--splitter", "lines", "--tokenizer", corpus_dir / "tokenizer", "--workers", 1)
    run(*lines, "--output-dir", tmp_path / "c")
    outputs = [Corpus.open(folder).manifest["outputs"] for folder in (tmp_path / "c", corpus_dir)]
    assert outputs[0] == outputs[1] and sorted(path.name for path in tmp_path.iterdir()) == ["c", "new", "t"]


def test_three_mpi_processes_make_the_same_bytes(corpus_dir: Path, text_file: Path, tmp_path: Path) -> None:
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("no mpirun beside this python: pip install mpich")
    words = [mpirun, "-n", 3, sys.executable, "-m", "data_tools.prepare", "--input", text_file, "--vocab-size", 200, "--output-dir"]
    done = subprocess.run([str(word) for word in (*words, tmp_path / "c")], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert Corpus.open(tmp_path / "c").manifest == Corpus.open(corpus_dir).manifest
    done = subprocess.run([str(word) for word in (*words, __file__)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2 and done.stderr.count("error:") == 1, done.stderr
