"""Entity marking, against KLUE's official rule written down independently, on SentencePiece and WordPiece tokenizers."""

import itertools
import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data_tools.errors import UserError
from data_tools.vocabulary import build_tokenizer, train_vocabulary
from trainer.markers import add_markers, encode_relations, keep_around, mark, marker_tokens, special_frame
from trainer.relations import Entity, Relation
from trainer.settings import INPUT_FORMATS

SYLLABLES = "가나다라마바사아자차카타파하강남달별솔"
ENDINGS = ("은", "이", "에서", "의", "")


def invented_row(rng: random.Random, num_words: int = 8) -> Relation:
    """Random words with endings; two of them are the entities, in random order."""
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(num_words)]
    places = rng.sample(range(num_words), 2)
    sentence, spans = "", {}
    for place, word in enumerate(words):
        if place in places:
            spans[place] = Entity(word, len(sentence), len(sentence) + len(word) - 1, rng.choice(["PER", "ORG", "LOC"]))
        sentence += word + rng.choice(ENDINGS) + " "
    return Relation("g", sentence.rstrip(), spans[places[0]], spans[places[1]], 0)


def relation(sentence: str, subject: str, obj: str) -> Relation:
    """The first place of each word is the entity."""
    spans = [
        Entity(word, sentence.index(word), sentence.index(word) + len(word) - 1, kind) for word, kind in ((subject, "PER"), (obj, "LOC"))
    ]
    return Relation("g", sentence, spans[0], spans[1], 0)


def fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    rng = random.Random(0)
    return [invented_row(rng).sentence for _ in range(400)]


@pytest.fixture(scope="module")
def ours(sentences) -> bytes:
    return train_vocabulary(sentences, 120, "unigram", 0.9995, False)


def sentencepiece(ours: bytes) -> PreTrainedTokenizerFast:
    """As `data_tools.prepare` exports it: a word start only where there is a space."""
    return fast(build_tokenizer(ours), pad_token="<pad>", unk_token="<unk>")


def sentencepiece_always(ours: bytes) -> PreTrainedTokenizerFast:
    """As XLM-R's: a word start after every added token."""
    tokenizer = build_tokenizer(ours)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    return fast(tokenizer, pad_token="<pad>", unk_token="<unk>")


def wordpiece(accents: bool = True) -> PreTrainedTokenizerFast:
    """Single syllables and some pairs, also as continuations; BERT's pre-tokenizer and frame."""
    pieces = [*SYLLABLES, "은", "이", "의", "에", "서", "에서", "가나", "다라"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", *pieces, *("##" + piece for piece in pieces if piece != "솔")]
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return fast(tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def tokens_of(tokenizer, row: Relation, input_format: str = "untyped", max_length: int = 256) -> list[str]:
    add_markers(tokenizer, input_format)
    return tokenizer.convert_ids_to_tokens(encode_relations([row], tokenizer, input_format, max_length).input_ids[0])


def official_tokens(tokenizer, row: Relation, kind: str) -> list[str]:
    """What KLUE's published preprocessing does, as method notes describe it: mark, tokenize, mend the token after each end marker."""
    sentence = row.sentence
    spans = [(row.subject.start, row.subject.end, "subj"), (row.object.start, row.object.end, "obj")]
    for start, end, role in sorted(spans, reverse=True):
        sentence = f"{sentence[:start]}<{role}>{sentence[start : end + 1]}</{role}>{sentence[end + 1 :]}"
    tokens = tokenizer.tokenize(sentence)
    for role in ("subj", "obj"):
        after = sentence.split(f"</{role}>")[1]
        if not after or after[0] == " ":
            continue
        place = tokens.index(f"</{role}>") + 1
        if kind == "sentencepiece" and tokens[place] == "▁":
            tokens.pop(place)
        elif kind == "sentencepiece" and tokens[place].startswith("▁"):
            tokens[place] = tokens[place][1:]
        elif kind == "wordpiece" and not tokens[place].startswith("##") and "가" <= tokens[place][0] <= "힣":
            tokens[place] = "##" + tokens[place]
    return tokens


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_untyped_is_the_official_preprocessing(kind, ours):
    tokenizer = sentencepiece_always(ours) if kind == "sentencepiece" else wordpiece()
    add_markers(tokenizer, "untyped")
    vocabulary, rng, glued = tokenizer.get_vocab(), random.Random(1), 0
    rows = [invented_row(rng) for _ in range(300)]
    encoded = encode_relations(rows, tokenizer, "untyped", 256)
    for row, ids in zip(rows, encoded.input_ids, strict=True):
        expected = official_tokens(tokenizer, row, kind)
        if not all(token in vocabulary for token in expected):
            continue  # there the official code gives unknown tokens, see test_glued_token_outside_the_vocabulary
        assert tokenizer.convert_ids_to_tokens(ids)[1:-1] == expected
        glued += expected != tokenizer.tokenize(mark(row, "untyped").text)
    assert encoded.num_cut == 0 and glued > 50


def test_a_marker_leaves_the_pieces_of_the_sentence_as_they_were(ours):
    """With our own tokenizer: word starts are seen at entities and after them exactly where the sentence has a space."""
    tokenizer = sentencepiece(ours)
    sentence = "가나 다라은 강남 마바에서 솔"
    for subject, obj in (("다라", "마바"), ("마바", "가나"), ("솔", "강")):
        tokens = tokens_of(tokenizer, relation(sentence, subject, obj))
        text = "".join(tokens[1:-1])
        for marker in ("<subj>", "</subj>", "<obj>", "</obj>"):
            text = text.replace(marker, "")
        assert text == "▁" + sentence.replace(" ", "▁")


def test_texts_of_the_formats():
    row = relation("김솔은 나루에서", "김솔", "나루")
    assert mark(row, "untyped").text == "<subj> 김솔</subj>은 <obj> 나루</obj>에서"
    assert mark(row, "typed").text == "<subj:PER> 김솔</subj:PER>은 <obj:LOC> 나루</obj:LOC>에서"
    assert mark(row, "typed-punct").text == "@*사람* 김솔@은 #^장소^ 나루#에서"
    assert mark(row, "none").text == row.sentence
    inside = relation("옛김솔은 (나루)", "김솔", "나루")
    assert mark(inside, "untyped").text == "옛<subj>김솔</subj>은 (<obj>나루</obj>)"
    for input_format in INPUT_FORMATS:
        marked = mark(row, input_format)
        start, end = marked.regions[0]
        assert "김솔" in marked.text[start:end] and "은" not in marked.text[start:end]


def test_entities_that_touch_repeat_end_the_sentence_or_leave_the_basic_plane(ours):
    tokenizer = sentencepiece(ours)
    touching = Relation("g", "가나다라", Entity("다라", 2, 3, "PER"), Entity("가나", 0, 1, "LOC"), 0)
    joined = "".join(tokens_of(tokenizer, touching))
    assert joined == "<s><obj>▁가나</obj><subj>다라</subj></s>"
    repeated = Relation("g", "가나 가나 가나", Entity("가나", 3, 4, "PER"), Entity("가나", 6, 7, "LOC"), 0)
    assert "".join(tokens_of(tokenizer, repeated)) == "<s>▁가나<subj>▁가나</subj><obj>▁가나</obj></s>"
    astral = Relation("g", "😀가나은 e\u0301다라", Entity("가나", 1, 2, "PER"), Entity("다라", 7, 8, "LOC"), 0)
    tokens = tokens_of(tokenizer, astral)
    assert "".join(tokens[tokens.index("<subj>") : tokens.index("</subj>") + 2]) == "<subj>가나</subj>은"
    assert "".join(tokens[tokens.index("<obj>") :]) == "<obj>다라</obj></s>"


def at(sentence: str, subject: int, obj: int, length: int = 2) -> Relation:
    """The entities are the characters that begin there."""
    subj, obj_ = (Entity(sentence[n : n + length], n, n + length - 1, kind) for n, kind in ((subject, "PER"), (obj, "LOC")))
    return Relation("g", sentence, subj, obj_, 0)


AWKWARD = {
    "touching": at("가나다라는 솔", 0, 2),
    "touching, object first": at("가나다라는 솔", 2, 0),
    "at both ends": at("가나는 다라", 4, 0),
    "nothing else": at("가나다라", 0, 2),
    "the second of three": at("가나 가나 가나", 3, 6),
    "inside longer words": at("가가나나 다가나라", 1, 6),
    "beyond the basic plane": at("😀가나😀𠮷다라𠮷", 1, 5),
    "of astral characters": at("강😀𠮷은 𠮷😀", 1, 5),
    "beginning with what combines": at("e\u0301가 하\u0301나", 1, 4),
    "ending before what combines": at("가e\u0301 나a\u0301", 0, 4),
    "joined emoji": at("\U0001f468\u200d\U0001f469\u200d\U0001f467 가나", 0, 6, 2),
    "letters taken apart": at("\u1100\u1161\u1102\u1161 \u1103\u1161", 0, 5),
    "with a space inside": at("가 나다 라", 0, 3, 3),
}


def wordpiece_of(text: str) -> PreTrainedTokenizerFast:
    characters = sorted(set(normalizers.BertNormalizer(strip_accents=False).normalize_str(text)) - {" "})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *("##" + character for character in characters)]
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return fast(tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def byte_level(prefix_space: bool) -> PreTrainedTokenizerFast:
    """GPT-2's and RoBERTa's kind without a merge: a byte a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<pad>": 0, **{byte: n for n, byte in enumerate(alphabet, start=1)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer, pad_token="<pad>")


def unigram_of(text: str, prepend: str) -> PreTrainedTokenizerFast:
    characters = sorted({*text, *normalizers.NFKC().normalize_str(text)} - {" "})
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((piece, -3.0) for piece in ("▁", *characters))], unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never")
    return fast(tokenizer, unk_token="<unk>", pad_token="<unk>")


@pytest.mark.parametrize("kind", ["wordpiece", "unigram first", "unigram always", "bytes", "bytes with a prefix"])
@pytest.mark.parametrize("input_format", ["untyped", "typed"])
def test_markers_sit_exactly_at_the_offsets(kind, input_format):
    """Between the markers, and on both sides of them, the tokens spell what the sentence has there, as the tokenizer normalises it."""
    text = "".join(row.sentence for row in AWKWARD.values())
    tokenizer = (
        wordpiece_of(text)
        if kind == "wordpiece"
        else byte_level("prefix" in kind)
        if "bytes" in kind
        else unigram_of(text, kind.split()[1])
    )
    add_markers(tokenizer, input_format)
    normalizer = tokenizer.backend_tokenizer.normalizer or normalizers.Sequence([])
    data = encode_relations(list(AWKWARD.values()), tokenizer, input_format, 256)
    for (name, row), ids, starts in zip(AWKWARD.items(), data.input_ids, data.starts, strict=True):
        first, second = sorted((row.subject, row.object), key=lambda entity: entity.start)
        cuts = [0, first.start, first.end + 1, second.start, second.end + 1, len(row.sentence)]
        expected = [normalizer.normalize_str(row.sentence[a:b]).replace(" ", "") for a, b in itertools.pairwise(cuts)]
        markers = set(tokenizer.convert_tokens_to_ids(marker_tokens(input_format)))
        places = [place for place, token_id in enumerate(ids) if token_id in markers]
        spans = itertools.pairwise([-1, *places, len(ids)])
        assert [tokenizer.decode(ids[a + 1 : b]).replace(" ", "").removeprefix("##") for a, b in spans] == expected, name
        assert sorted(starts) == [places[0], places[2]] and (starts[0] < starts[1]) == (row.subject == first), name
        assert [tokenizer.convert_ids_to_tokens(ids[start])[:5] for start in starts] == [
            "<subj",
            "<obj>" if input_format == "untyped" else "<obj:",
        ]


def test_byte_level_tokens_after_an_end_marker_begin_a_word_only_after_a_space():
    tokenizer = byte_level(True)
    tokens = tokens_of(tokenizer, relation("가나는 다라 솔", "가나", "다라"))
    assert tokens[0] == "<subj>" and tokens[1] == "Ġ"  # the entity begins a word
    assert tokens[tokens.index("</subj>") + 1] != "Ġ" and tokens[tokens.index("</obj>") + 1] == "Ġ"
    assert tokenizer.decode([tokenizer.convert_tokens_to_ids(token) for token in tokens[tokens.index("</subj>") + 1 :]]).startswith("는 ")


def test_starts_follow_the_entities_through_a_cut(ours):
    tokenizer = sentencepiece(ours)
    rng = random.Random(3)
    for input_format in INPUT_FORMATS:
        add_markers(tokenizer, input_format)
        rows = [invented_row(rng, num_words=60) for _ in range(20)]
        whole, cut = (encode_relations(rows, tokenizer, input_format, length) for length in (10_000, 40))
        assert cut.num_cut == 20
        for row, ids, starts, all_ids, all_starts in zip(rows, cut.input_ids, cut.starts, whole.input_ids, whole.starts, strict=True):
            assert [ids[start] for start in starts] == [all_ids[start] for start in all_starts]
            assert (starts[0] < starts[1]) == (row.subject.start < row.object.start)
            for start, entity in zip(starts, (row.subject, row.object), strict=True):
                text = "".join(tokenizer.convert_ids_to_tokens(ids[start : start + 12]))
                assert entity.word in text and (input_format != "none" or text.lstrip("▁").startswith(entity.word))


def test_a_sentence_cannot_write_the_tokenizers_own_tokens(ours):
    tokenizer = sentencepiece(ours)
    for input_format in ("untyped", "none"):
        add_markers(tokenizer, input_format)
        ids = encode_relations([relation("가나 </s> 다라<s>", "가나", "다라")], tokenizer, input_format, 99, end_id=2).input_ids[0]
        assert ids[0] == 0 and ids[-1] == 2 and ids.count(0) == ids.count(2) == 1 and ids.count(tokenizer.unk_token_id) == 2
    bytes_ = byte_level(False)  # writes no end token of its own accord, and has no unknown one
    data = encode_relations([relation("가나 <pad>다라", "가나", "다라")], bytes_, "none", 99, end_id=0)
    (ids,), ((_, obj),) = data.input_ids, data.starts
    assert ids[-1] == 0 and ids.count(0) == 1 and bytes_.decode(ids[:-1]) == "가나 다라" and bytes_.decode(ids[obj:-1]) == "다라"


def test_glued_token_outside_the_vocabulary():
    word = wordpiece()
    tokens = tokens_of(word, relation("가나솔 다라", "가나", "다라"))  # there is no '##솔'
    assert tokens[tokens.index("</subj>") + 1] == "솔"
    tokens = tokens_of(word, relation("가나a 다라.", "가나", "다라"))  # only Hangul is glued
    assert tokens[tokens.index("</subj>") + 1] == "a" and tokens[tokens.index("</obj>") + 1] == "."
    pieces = [("<unk>", 0.0), ("▁", -3.0), ("▁강남", -2.0), ("▁달", -2.0), ("▁특별시", -2.0), ("특별", -2.0), ("시", -2.0), ("특", -4.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    piece = fast(backend, unk_token="<unk>", pad_token="<unk>")
    tokens = tokens_of(piece, relation("강남특별시 달", "강남", "달"))  # there is no '특별시'
    assert tokens == ["<subj>", "▁강남", "</subj>", "특별", "시", "▁", "<obj>", "▁달", "</obj>"]


def test_typed_punct_tells_the_entities_apart_when_its_signs_are_unknown(ours):
    tokenizer = sentencepiece(ours)
    assert add_markers(tokenizer, "typed-punct") == 4 and add_markers(tokenizer, "typed-punct") == 0
    tokens = tokens_of(tokenizer, relation("가나은 다라에서", "가나", "다라"), "typed-punct")
    assert tokens.count("@") == 2 and tokens.count("#") == 2 and "".join(tokens).endswith("다라#에서</s>")


@pytest.mark.parametrize("input_format", INPUT_FORMATS)
def test_cut_rows_keep_both_entities(input_format, ours):
    tokenizer = sentencepiece(ours)
    add_markers(tokenizer, input_format)
    rng = random.Random(2)
    rows = [invented_row(rng, num_words=60) for _ in range(40)]
    full = encode_relations(rows, tokenizer, input_format, 10_000)
    cut = encode_relations(rows, tokenizer, input_format, 48)
    assert full.num_cut == 0 and cut.num_cut == sum(len(ids) > 48 for ids in full.input_ids) == 40
    for row, ids, whole in zip(rows, cut.input_ids, full.input_ids, strict=True):
        assert len(ids) == 48 and ids[0] == whole[0] and ids[-1] == whole[-1]
        remaining = iter(whole)
        assert all(token in remaining for token in ids)  # in order, nothing made up
        text = "".join(tokenizer.convert_ids_to_tokens(ids))
        assert row.subject.word in text and row.object.word in text
        if input_format == "untyped":
            assert all(text.count(marker) == 1 for marker in ("<subj>", "</subj>", "<obj>", "</obj>"))


def test_keep_around_by_hand():
    assert keep_around(20, [(8, 10), (11, 13)], 9) == [6, 7, 8, 9, 10, 11, 12, 13, 14]  # around, evenly
    assert keep_around(20, [(0, 2), (3, 5)], 9) == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # all to the right
    assert keep_around(20, [(0, 2), (18, 20)], 8) == [0, 1, 2, 3, 16, 17, 18, 19]  # a hole in the middle
    assert keep_around(20, [(1, 9), (10, 18)], 8) == [1, 2, 3, 8, 10, 11, 12, 17]  # too long themselves: the markers and the starts


def test_frame_limits_and_clashes(ours):
    tokenizer = sentencepiece(ours)
    assert special_frame(tokenizer) == ([0], [2]) and special_frame(wordpiece()) == ([2], [3])
    add_markers(tokenizer, "untyped")
    with pytest.raises(UserError, match="--max-length: expected at least 8, found 7"):
        encode_relations([relation("가나 다라", "가나", "다라")], tokenizer, "untyped", 7)
    clash = relation("가나 </obj> 다라", "가나", "다라")
    with pytest.raises(UserError, match=r"F\.json: row 1 \(guid g\), sentence: .*'</obj>'"):
        encode_relations([clash], tokenizer, "untyped", 99, "F.json")
    assert len(encode_relations([clash], tokenizer, "none", 99).input_ids) == 1
