"""The commands, end to end on small invented text: what a corpus holds, and what the user's mistakes get."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset
from transformers import AutoTokenizer

from data_tools import prepare as prepare_command
from data_tools.corpus import MANIFEST_NAME, SPLITS, Corpus
from data_tools.errors import UserError
from data_tools.sentences import split_sentences
from data_tools.vocabulary import FILES, check_export, load_processor
from tests.prepared import DOCUMENTS, invented_documents, run

FORTY = "".join(f"가 나 다 {number}.\n\n" for number in range(40))


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
    given = (tmp_path / "new" / "sentences").read_bytes()
    for own in (("--input", "sentences"), ("--input", text_file, "--exclude", "sentences")):
        words = [sys.executable, "-m", "data_tools.steps", "sentences", *map(str, own), "--output", "./sentences"]
        done = subprocess.run(words, cwd=tmp_path / "new", capture_output=True, text=True, check=False)
        assert done.returncode == 2 and f"found that of {own[-2]}; name another" in done.stderr, done.stderr
    assert (tmp_path / "new" / "sentences").read_bytes() == given
    assert launch("data_tools.steps", "sentences", "--input", text_file, "--output", "/dev/stdout").encode() == given  # a pipe
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
