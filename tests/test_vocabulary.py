"""The exported tokenizer against SentencePiece itself, on adversarial lines and on random ones; and its training, which Ctrl-C ends."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_tools.errors import UserError
from data_tools.options import VOCABULARY_DEFAULTS
from data_tools.vocabulary import MODEL_NAME, SPECIAL_TOKENS, check_export, export_tokenizer, load_processor, train_vocabulary

DEFAULTS = tuple(VOCABULARY_DEFAULTS.values())
# fmt: off
WORDS = [
    "나라", "사람", "학교", "서울", "강", "산", "바다", "하늘", "책", "말", "글", "집", "길", "물", "빛", "문학", "역사", "음악",
    "대학교", "정부", "회사", "도시", "the", "of", "and", "history", "Seoul", "1945", "2003", "漢字", "大學", "ㅋㅋ", "e", "é", "à",
]
# fmt: on
PARTICLES = ["은", "는", "이", "가", "을", "를", "에서", "으로", "의", "에게", "하였다.", "이다.", "", ","]


def invented_sentences(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [
        " ".join(generator.choice(WORDS) + generator.choice(PARTICLES) for _ in range(generator.randint(3, 12))) + generator.choice(".!?")
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    export_tokenizer(train_vocabulary(invented_sentences(3000, 0), 180, *DEFAULTS), path)
    return path


@pytest.fixture(scope="module", params=[("unigram", False), ("unigram", True), ("bpe", False), ("bpe", True)], ids=str)
def any_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("any")
    model_type, byte_fallback = request.param
    sentences = invented_sentences(3000, 0) + ["a < b > s u n k / m p d", "a </b </b"] * 200
    size = 400 + 256 * byte_fallback if model_type == "bpe" else 180 + 256 * byte_fallback
    model = train_vocabulary(sentences, size, model_type, 0.999, byte_fallback)
    assert model == train_vocabulary(sentences, size, model_type, 0.999, byte_fallback)
    export_tokenizer(model, path)
    assert check_export(path).vocab_size() == size
    return path


@pytest.fixture(scope="module")
def processor(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return load_processor(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


ADVERSARIAL = [
    "",
    "   ",
    " 앞과 뒤 ",
    "두  칸   세 칸",
    "탭\t줄\n바꿈\r\n끝\u3000넓은\u00a0칸\u2028줄",
    "\ufeff\u200b나라",
    "\u115f\u1160사람",
    "\ufeff나라\u200b사람 \u200b 집\u200b",
    "\u200b\ufeff",
    "제어\x01문자\x7f\x85와\x00영",
    unicodedata.normalize("NFD", "한국어 각하 깎다 띄어쓰기 뷁 é à ệ"),
    "\u1112\u1161\u11ab \u1112 \u1161 \u11ab \u1112\u1112\u1161 가\u11a8\u11a8 \u1113\u1161",
    "ㅋㅋㅋㅎㅎㅏㄴ ㄱㅏ ﾡￂ \u3164",
    "👨‍👩‍👧‍👦 🇰🇷 👍🏽 ❤️ 1️⃣",
    "漢字 大學 豈 金 \U0002f800",
    "ＡＢＣ１２３　～ ①②③ ㈜ ㎏ ½ … ﬁ ℀ ﷽",
    "e\u0301\u0302 a\u0323\u0307 \u0301 ①\u0308 Å\u0327 \u0344 \u1e69 s\u0323\u0307 ℀\u0327",
    "ｶﾞｷﾞ か\u3099 אָ שּׁ क़ \u0958 \u0b47\u0b3e مُتَصَرِّف",
    "▁▁a▁b ▁",
    "<0x41> a<0xEC><0x9D> <0x4>",
    "＜mask＞ 끝＜/s＞ ＜s＞＜unk＞a ＜pad＞＜ｓ＞ ＜masks＞ ＜0x41＞ 나라 ＜／ｓ＞ ＜／",
    "\ufdd0a\ufdd1b\ufdd2",
    "나라" * 5000,
    "ㅋ" * 10000,
    "ab" * 5000,
    "e\u0301" * 5000 + " " * 500 + "!" * 4500,
    "\ud7a3\u11a8\ue000\U0010ffff",
]


def test_same_ids_on_adversarial_lines(any_folder: Path) -> None:
    processor, tokenizer = load_processor(any_folder), AutoTokenizer.from_pretrained(any_folder)
    has_bytes = processor.piece_to_id("<0x41>") != 3
    for line in ADVERSARIAL:
        ids = processor.encode(line)
        assert tokenizer(line, add_special_tokens=False)["input_ids"] == ids, repr(line[:40])
        assert tokenizer.decode(ids) == processor.decode(ids) or (not has_bytes and 3 in ids), repr(line[:40])
        assert not has_bytes or 3 not in ids


def test_text_that_becomes_a_special_token_is_text_though_signs_are_unknown(folder: Path) -> None:
    processor, tokenizer = load_processor(folder), AutoTokenizer.from_pretrained(folder)
    assert processor.piece_to_id("<") == 3 and processor.piece_to_id("a") != 3
    for line in ("＜mask＞ ＜pad＞나라", "나라＜mask＞"):
        assert tokenizer(line, add_special_tokens=False)["input_ids"] == processor.encode(line), line


def test_same_ids_on_random_lines(any_folder: Path) -> None:
    processor, tokenizer = load_processor(any_folder), AutoTokenizer.from_pretrained(any_folder)
    generator = random.Random(0)
    anything = [chr(code) for code in range(1, 0x30000) if not 0xD800 <= code < 0xE000]
    marks = [character for character in anything if unicodedata.category(character).startswith("M")]
    jamo = [chr(code) for code in range(0x1100, 0x1200)]
    common = list("abceiouACE ㅎㅏ가나다각  \t\u200b")
    lines = ["".join(generator.choice(generator.choice((anything, marks, jamo, common, common))) for _ in range(12)) for _ in range(4000)]
    lines += ["".join(generator.choice("나라사람학교ab e") for _ in range(generator.randint(1, 60))) for _ in range(4000)]  # repetitions
    lines += invented_sentences(500, 1)
    encoded = tokenizer(lines, add_special_tokens=False)["input_ids"]
    assert [line for line, ids in zip(lines, encoded, strict=True) if ids != processor.encode(line)] == []


def test_normalisation(processor: sentencepiece.SentencePieceProcessor) -> None:
    """NFKC on ordinary text, with the three deviations that the module states."""
    for line in ("ＡＢＣ１２３ ①② ㈜ ½ ﬁ 豈", unicodedata.normalize("NFD", "한국어 각하 é"), "ｶ ㎏ 가나다"):
        assert processor.normalize(line).replace("▁", " ").strip() == " ".join(unicodedata.normalize("NFKC", line).split())
    assert processor.normalize("ㅋㅋ ㅎㅏ") == "▁ㅋㅋ▁ㅎㅏ" and processor.normalize("가\u200b나\x01다") == "▁가나다"


def test_special_tokens_and_templates(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.is_fast and tokenizer.model_max_length == 512 and tokenizer.vocab_size == 180 and (folder / MODEL_NAME).is_file()
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    names = ("bos", "pad", "eos", "unk", "mask", "cls", "sep")
    assert [getattr(tokenizer, f"{name}_token_id") for name in names] == [0, 1, 2, 3, 4, 0, 2]
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("나라 사람", "학교"))
    assert tokenizer("나라 사람")["input_ids"] == [0, *first, 2]
    assert tokenizer("나라 사람", "학교")["input_ids"] == [0, *first, 2, 2, *second, 2]
    padded = tokenizer(["나라 사람 학교 서울", "강"], padding=True)
    assert padded["input_ids"][1][-1] == 1 and padded["attention_mask"][1][-1] == 0


def test_decoding_and_added_markers(processor: sentencepiece.SentencePieceProcessor, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for line in invented_sentences(200, 2):
        assert tokenizer.decode(tokenizer(line)["input_ids"], skip_special_tokens=True) == line == processor.decode(processor.encode(line))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<subj>", "</subj>"]})
    pieces = tokenizer.tokenize("나라 <subj>서울</subj>에서 <mask>를")
    assert pieces[0].startswith("▁") and [p for p in pieces if p.startswith("<")] == ["<subj>", "</subj>", "<mask>"]
    assert pieces[pieces.index("</subj>") + 1] == "에서" and pieces[-1] == "를"  # glued, as in the text


def test_literal_special_tokens_are_text_in_the_corpus(processor: sentencepiece.SentencePieceProcessor) -> None:
    for token in SPECIAL_TOKENS:
        ids = processor.encode(f"나라 {token} 사람")
        assert not {0, 1, 2, 4} & set(ids) and "".join(processor.id_to_piece(ids)).endswith("▁사람")


def test_the_scores_of_pieces_are_exact(processor: sentencepiece.SentencePieceProcessor) -> None:
    assert all((processor.get_score(piece) * 64).is_integer() for piece in range(processor.vocab_size()))


def test_what_cannot_be_trained_or_reused_is_refused(folder: Path, tmp_path: Path) -> None:
    for size, limit in ((900, "at most"), (10, "at least")):
        with pytest.raises(UserError, match=f"--vocab-size {size}: .*{limit} \\d+ pieces"):
            train_vocabulary(invented_sentences(200, 0), size, *DEFAULTS)
    with pytest.raises(UserError, match="--vocab-size 100"):
        train_vocabulary([], 100, *DEFAULTS)
    assert check_export(folder).vocab_size() == 180
    with pytest.raises(UserError, match=MODEL_NAME):
        load_processor(tmp_path)
    other = train_vocabulary(invented_sentences(3000, 5), 150, *DEFAULTS)
    export_tokenizer(other, tmp_path)
    (tmp_path / MODEL_NAME).write_bytes((folder / MODEL_NAME).read_bytes())
    with pytest.raises(UserError, match="differ"):
        check_export(tmp_path)
    for junk in (b"junk", b""):
        (tmp_path / MODEL_NAME).write_bytes(junk)
        with pytest.raises(UserError, match="cannot be read"):
            load_processor(tmp_path)
    shutil.copytree(folder, tmp_path / "mine")
    for name, content, message in (
        ("tokenizer_config.json", "{", "expected what prepare writes there, found differences in all of it"),
        (
            "tokenizer_config.json",
            (folder / "tokenizer_config.json").read_text().replace("<mask>", "[MASK]"),
            "found differences in mask_token",
        ),
        ("tokenizer.json", Tokenizer(models.WordLevel({"a": 0}, "b")).to_str(), "differ"),
    ):
        (tmp_path / "mine" / name).write_text(content)
        with pytest.raises(UserError, match=message):
            check_export(tmp_path / "mine")
        shutil.copyfile(folder / name, tmp_path / "mine" / name)
    check_export(shutil.copytree(folder, tmp_path / os.fsdecode(b"\xff")))


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
