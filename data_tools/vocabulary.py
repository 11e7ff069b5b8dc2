"""The vocabulary: a SentencePiece model (unigram or BPE), its normalisation, and its export as a Hugging Face tokenizer with the same ids.

Three things make "the same ids" exact rather than nearly so:

* Normalisation. SentencePiece rewrites the longest match of a rule table; Hugging Face's `Precompiled` normalizer looks at grapheme
  clusters and takes the shortest match, so the two differ on conjoining jamo, stacked accents and more. The table here therefore
  holds rules for single characters (NFKC) and for the pairs that Unicode composes (jamo into syllables, letter + accent) only, and the
  export puts separators between characters so that `Precompiled` sees one at a time and `NFC` composes those pairs and no others.
* Scores. SentencePiece adds log probabilities as float32, Hugging Face as float64; ties on long lines would break differently.
  Scores are rounded to 1/64, so that both sums are exact.
* Merges. SentencePiece's BPE has pieces in order of merging, Hugging Face's pairs: all pairs that make a piece come at the piece's place,
  the longer left part first, which is the leftmost choice on repetitions.
"""

import io
import json
import re
import tempfile
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec  # type: ignore[attr-defined]  # made at import
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data_tools.errors import UserError

MODEL_NAME = "sentencepiece.model"
FILES = (MODEL_NAME, "tokenizer.json", "tokenizer_config.json")  # of a tokenizer folder; the last one is written last
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # in the order of their ids, which are RoBERTa's
UNKNOWN_ID = 3
CONFIGURATION = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 512,
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "bos_token": SPECIAL_TOKENS[0],
    "eos_token": SPECIAL_TOKENS[2],
    "cls_token": SPECIAL_TOKENS[0],
    "sep_token": SPECIAL_TOKENS[2],
    "pad_token": SPECIAL_TOKENS[1],
    "unk_token": SPECIAL_TOKENS[3],
    "mask_token": SPECIAL_TOKENS[4],
}
"""tokenizer_config.json."""
SCORE_STEP = 1 / 64
LONGEST_TRAINING_SENTENCE = 4192  # bytes; longer ones are left out of the training, not of the corpus
# The sums of an E-step depend on how many threads share it, so the number is fixed: the same model on every machine.
TRAINING_THREADS = 4
INVISIBLE = "\u00ad\u061c\u180e\u200b\u200e\u200f\u2060\ufeff" + "".join(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))
"""White space of no width, direction marks: characters that vanish. The joiners U+200C and U+200D are not among them."""

_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029\u2581"
_LEADING_JAMO, _VOWEL_JAMO, _TRAILING_JAMO = range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3)
_SYLLABLES_WITHOUT_TRAIL = range(0xAC00, 0xD7A4, 28)
# Separators within the export's normalizer: noncharacters. Where a text contains one, it is escaped meanwhile.
_JOINED, _APART = "\ufdd0", "\ufdd1"
_ESCAPES = {"\ufdd2": "\ufdd2\ufdd3", _JOINED: "\ufdd2\ufdd4", _APART: "\ufdd2\ufdd5"}


def character_rules() -> dict[str, str]:
    """What a single character becomes: NFKC, but compatibility jamo (ㅋㅋ) stay themselves, since NFKC would make them conjoin
    with what follows. Any white space becomes a space; control and invisible characters vanish (joiners stay, emoji need them)."""
    rules = {}
    for code_point in range(1, 0x110000):
        character = chr(code_point)
        category = unicodedata.category(character)
        if category in ("Cs", "Cn", "Co"):
            continue
        if character in _SPACES or category == "Zs":
            rules[character] = " "
        elif category == "Cc" or character in INVISIBLE:
            rules[character] = ""
        elif not 0x3131 <= code_point <= 0x318E:
            rules[character] = unicodedata.normalize("NFKC", character)
    for code_point in range(0xFFA0, 0xFFDD):  # halfwidth jamo: to the compatibility jamo, no further
        decomposition = unicodedata.decomposition(chr(code_point)).split()
        if decomposition:
            rules[chr(code_point)] = chr(int(decomposition[1], 16))
    for code_point in (0x115F, 0x1160, 0x3164, 0xFFA0):  # jamo fillers: invisible
        rules[chr(code_point)] = ""
    return {character: target for character, target in rules.items() if target != character}


def accent_pairs() -> dict[tuple[str, str], str]:
    """(letter, combining mark) -> the one character that Unicode composes of them, for letters that are not composed themselves."""
    pairs = {}
    for code_point in range(0x110000):
        composed = chr(code_point)
        decomposition = unicodedata.decomposition(composed).split()
        if len(decomposition) != 2 or decomposition[0].startswith("<"):
            continue
        letter, mark = (chr(int(part, 16)) for part in decomposition)
        if unicodedata.category(letter).startswith("M") or unicodedata.decomposition(letter):
            continue
        if unicodedata.normalize("NFC", letter + mark) == composed:
            pairs[letter, mark] = composed
    return pairs


def normalization_table() -> str:
    """The rules as SentencePiece's TSV: code points in hexadecimal, source, tab, target."""
    rules = character_rules() | {letter + mark: composed for (letter, mark), composed in accent_pairs().items()}
    for leading in _LEADING_JAMO:
        for vowel in _VOWEL_JAMO:
            syllable = chr(leading) + chr(vowel)
            rules[syllable] = unicodedata.normalize("NFC", syllable)
            for trailing in _TRAILING_JAMO:
                rules[syllable + chr(trailing)] = unicodedata.normalize("NFC", syllable + chr(trailing))
    for syllable_code in _SYLLABLES_WITHOUT_TRAIL:
        for trailing in _TRAILING_JAMO:
            rules[chr(syllable_code) + chr(trailing)] = chr(syllable_code + trailing - 0x11A7)
    return "".join(f"{_hexadecimal(source)}\t{_hexadecimal(target)}\n" for source, target in sorted(rules.items()))


def train_vocabulary(sentences: Iterable[str], size: int, model_type: str, character_coverage: float, byte_fallback: bool) -> bytes:
    """A SentencePiece model of `size` pieces, special tokens included. The same sentences give the same bytes.

    model_type: unigram or bpe. character_coverage: the share of the text's characters that get a piece. byte_fallback: the others become
    their UTF-8 bytes (256 of the pieces) instead of <unk>.

    Raises UserError when the text does not support that many pieces.
    """
    model = io.BytesIO()
    broken: list[Exception] = []
    refused: list[Exception] = []

    def fed() -> Iterator[str]:
        try:
            yield from sentences
        except Exception as error:  # SentencePiece turns it into a RuntimeError of its own
            broken.append(error)
            raise

    def train() -> None:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=fed(),
                model_writer=model,
                model_type=model_type,
                vocab_size=size,
                normalization_rule_tsv=table.name,
                character_coverage=character_coverage,
                byte_fallback=byte_fallback,
                bos_id=0,
                pad_id=1,
                eos_id=2,
                unk_id=UNKNOWN_ID,
                bos_piece=SPECIAL_TOKENS[0],
                pad_piece=SPECIAL_TOKENS[1],
                eos_piece=SPECIAL_TOKENS[2],
                unk_piece=SPECIAL_TOKENS[3],
                control_symbols=list(SPECIAL_TOKENS[4:]),
                num_threads=TRAINING_THREADS,
                max_sentence_length=LONGEST_TRAINING_SENTENCE,
                minloglevel=2,
            )
        except Exception as error:
            refused.append(error)

    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="ascii") as table:
        table.write(normalization_table())
        table.flush()
        thread = threading.Thread(target=train, daemon=True)  # SentencePiece does not react to Ctrl-C; this thread, which waits, does
        thread.start()
        thread.join()
    for error in broken:
        raise error
    for error in refused:
        raise UserError(f"--vocab-size {size}: {_training_failure(str(error))}") from error
    return _with_exact_scores(model.getvalue(), table.name)


def _training_failure(message: str) -> str:
    """What SentencePiece says about a vocabulary size, in our words where we have any."""
    if too_many := re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return f"the text supports at most {too_many[1]} pieces; give a smaller --vocab-size or more text"
    if too_few := re.search(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)", message):
        return f"the text's characters alone need at least {too_few[1]} pieces; give a larger --vocab-size"
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return f"expected sentences of up to {LONGEST_TRAINING_SENTENCE} bytes to train on, found none; give more text"
    return f"expected text to train on, but SentencePiece refuses it ({' '.join(message.split())}); give another --vocab-size or more text"


def _with_exact_scores(model_bytes: bytes, table_name: str) -> bytes:
    """Round the scores to SCORE_STEP and remove the temporary file's name, which differs every time, from the model."""
    model = ModelProto.FromString(model_bytes)
    for piece in model.pieces:
        piece.score = round(piece.score / SCORE_STEP) * SCORE_STEP
    assert model.normalizer_spec.normalization_rule_tsv == table_name
    model.normalizer_spec.normalization_rule_tsv = ""
    model.normalizer_spec.name = "nfkc_jamo"
    return model.SerializeToString(deterministic=True)


def load_processor(tokenizer_dir: Path) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece model of a tokenizer folder. Raises UserError when there is none or it cannot be read."""
    model_file = tokenizer_dir / MODEL_NAME
    if not model_file.is_file():
        raise UserError(f"{tokenizer_dir}: expected a tokenizer folder with {MODEL_NAME} in it, found none; give one that prepare made")
    try:
        if not (content := model_file.read_bytes()):  # to SentencePiece this would mean that no model is given
            raise RuntimeError("the file is empty")
        return sentencepiece.SentencePieceProcessor(model_proto=content)  # not by name, which may not be UTF-8
    except (RuntimeError, OSError) as error:
        raise UserError(f"{model_file}: expected a SentencePiece model, but it cannot be read; make the folder anew") from error


def export_tokenizer(model_bytes: bytes, folder: Path) -> None:
    """Write a folder that `AutoTokenizer.from_pretrained` loads as a fast tokenizer: model, tokenizer.json and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_NAME).write_bytes(model_bytes)
    (folder / "tokenizer.json").write_text(build_tokenizer(model_bytes).to_str(pretty=True), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIGURATION, indent=2) + "\n", encoding="utf-8")


def check_export(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece model of a tokenizer folder, after a check that its Hugging Face side gives the same ids.

    Raises UserError when a file is missing or the two disagree (XLM-R's tokenizer, for one, shifts SentencePiece's ids).
    """
    processor = load_processor(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: expected a tokenizer folder with {name} in it, found none; give one that prepare made")
    try:
        tokenizer = Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes())
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(f"{folder / 'tokenizer.json'}: expected a Hugging Face tokenizer, but it cannot be read") from error
    probes = [
        "".join(processor.id_to_piece(list(range(5, processor.vocab_size())))[:2000]),
        "가나다 ABC 123 ①②③ e\u0301",
        "한 \u1112\u1161\u11ab 字",
    ]
    special_ids = [processor.piece_to_id(token) for token in SPECIAL_TOKENS]
    try:
        same_ids = all(tokenizer.encode(probe, add_special_tokens=False).ids == processor.encode(probe) for probe in probes)
    except Exception:  # a model without its unknown token
        same_ids = False
    if special_ids != list(range(len(SPECIAL_TOKENS))) or not same_ids:
        raise UserError(f"{folder}: expected tokenizer.json to give the ids of {MODEL_NAME}, but they differ; give one that prepare made")
    if others := _other_settings(folder / "tokenizer_config.json"):
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: expected what prepare writes there, found differences in {', '.join(others)}; "
            "give a folder that prepare made"
        )
    return processor


def _other_settings(file: Path) -> list[str]:
    """What of a tokenizer_config.json is not as prepare writes it."""
    try:
        found = json.loads(file.read_bytes())
        others = [key for key, value in CONFIGURATION.items() if key.endswith("_token") and found.get(key) != value]
        if found.get("tokenizer_class") not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
            others.append("tokenizer_class")
    except (ValueError, AttributeError, OSError):
        return ["all of it"]
    return others


def build_tokenizer(model_bytes: bytes) -> Tokenizer:
    """The Hugging Face tokenizer that gives the ids of this SentencePiece model, `<s> $A </s>` around them."""
    model = ModelProto.FromString(model_bytes)
    byte_fallback = model.trainer_spec.byte_fallback
    if model.trainer_spec.model_type == TrainerSpec.BPE:
        ids = {piece.piece: number for number, piece in enumerate(model.pieces)}
        merges = _merges([piece.piece for piece in model.pieces if piece.type == ModelProto.SentencePiece.NORMAL])
        tokenizer = Tokenizer(
            models.BPE(ids, merges, unk_token=SPECIAL_TOKENS[UNKNOWN_ID], fuse_unk=not byte_fallback, byte_fallback=byte_fallback)
        )
    else:
        pieces = [(piece.piece, piece.score) for piece in model.pieces]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=UNKNOWN_ID, byte_fallback=byte_fallback))
    tokenizer.normalizer = _build_normalizer(model.normalizer_spec.precompiled_charsmap)
    # "first": what follows an added token (a mask, an entity marker) without a space is glued to it, as it is in the text
    metaspace: dict[str, Any] = {"replacement": "▁", "prepend_scheme": "first", "split": True}
    # What normalisation makes of full-width signs is text and not a special token, nor is "<0x41>" in a text the piece of a byte.
    known = {piece.piece for piece in model.pieces}
    places = [_place_within(token, known) for token in SPECIAL_TOKENS] + ["(?<=<)(?=0x[0-9A-F]{2}>)"] * byte_fallback
    apart = pre_tokenizers.Split(Regex("|".join(places)), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(**metaspace), apart])
    tokenizer.decoder = decoders.Metaspace(**metaspace)
    if byte_fallback:
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), tokenizer.decoder])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _place_within(token: str, known: set[str]) -> str:
    """A pattern for where to cut text that spells a special token: the first place that no piece may span and that does not part two
    unknown characters, which would be one unknown piece. Where there is none, the place that comes closest."""

    def goodness(place: int) -> int:
        around = token[place - 1 : place + 1]
        return 2 * (not known.isdisjoint(around)) + (not any(around in piece for piece in known.difference(SPECIAL_TOKENS)))

    cut = max(range(1, len(token)), key=goodness)
    return f"(?<={token[:cut]})(?={token[cut:]})"


def _merges(pieces: list[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, in the order of the pieces made."""
    known = set(pieces)
    return [
        (piece[:end], piece[end:])
        for piece in pieces
        for end in range(len(piece) - 1, 0, -1)
        if piece[:end] in known and piece[end:] in known
    ]


def _build_normalizer(charsmap: bytes) -> normalizers.Normalizer:
    letters = sorted({letter for letter, _ in accent_pairs()})
    marks = sorted({mark for _, mark in accent_pairs()})
    vanishing = [character for character, target in character_rules().items() if not target]
    composing = "|".join(
        [
            f"(?<=[{_ranges(letters)}])(?=[{_ranges(marks)}])",
            r"(?<=[\x{1100}-\x{1112}])(?=[\x{1161}-\x{1175}])",
            r"(?<=[\x{1161}-\x{1175}])(?=[\x{11A8}-\x{11C2}])",
            f"(?<=[{_ranges([chr(code) for code in _SYLLABLES_WITHOUT_TRAIL])}])(?=[\\x{{11A8}}-\\x{{11C2}}])",
        ]
    )
    plain = r"\x20-\x7E\x{AC00}-\x{D7A3}\x{4E00}-\x{9FFF}" + _JOINED  # no rule, no grapheme cluster: needs no separator
    return normalizers.Sequence(
        [
            *(normalizers.Replace(character, escape) for character, escape in _ESCAPES.items()),
            # Metaspace marks a start of text only where nothing was cut off before it, but accepts a space instead
            normalizers.Replace(Regex(f"^[{_ranges(vanishing)}]+"), " "),
            normalizers.Replace(Regex(composing), _JOINED),
            normalizers.Replace(Regex(f"(?<=[^{plain}])(?=[^{_JOINED}])|(?<=[^{_JOINED}])(?=[^{plain}])"), _APART),
            normalizers.Precompiled(charsmap),
            normalizers.Replace(_JOINED, ""),
            normalizers.NFC(),
            normalizers.Replace(_APART, ""),
            *(normalizers.Replace(escape, character) for character, escape in reversed(_ESCAPES.items())),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(left=False, right=True),
        ]
    )


def _ranges(characters: list[str]) -> str:
    return "".join(f"\\x{{{ord(character):X}}}" for character in characters)


def _hexadecimal(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)
