"""Sentence ends, from hand-split paragraphs."""

import pytest

from data_tools.sentences import split_sentences

# each paragraph with its sentences parted by " | "
PARAGRAPHS = [
    "서울은 대한민국의 수도이다. | 인구는 약 940만 명이다.",
    "정말로 갔니?! | 그래… | 알았다... | 좋아!",
    "「법」은 2003. 5. 1. 개정되었다. | 개정안은 2004.1.20. 시행되었다. | 원주율은 3.14이다. | 값은 2.5. | Ok.",
    "그는 “나는 간다. 너는 와라.”라고 말했다. | 그리고 떠났다.",
    '"가라." 라고 그가 말했다. | "와라." | 그녀가 답했다.',
    "그는 왔다(2001년에 갔다. 다시 왔다. 그렇다.). | 그는 쉬었다. | (끝이다.) | 정말이다.",
    "J. K. 롤링은 작가이다. | U.S. 해군의 배였다. | Dr. Smith met Mr. Jones in 1999. | They left at 5 p.m. and slept.",
    "이것은 말이다.[1] | 다음이다.[12][13] | 또 다음이다.",
    "1. 서론은 이렇다. | 2. 본론은 저렇다. | 가. 총칙이다.",
    "他来了。 | 我走了。",
    "뭐 해. | 밥 먹어.",
    "마침표 없는 제목",
]


@pytest.mark.parametrize("marked", PARAGRAPHS)
def test_hand_split_paragraphs(marked: str) -> None:
    expected = marked.split(" | ")
    assert split_sentences(" ".join(expected)) == expected


def test_glued_korean_sentences_and_chinese_without_spaces() -> None:
    assert split_sentences("그는 갔다.다시 왔다.버전 1.2이다.") == ["그는 갔다.", "다시 왔다.", "버전 1.2이다."]
    assert split_sentences("他来了。我走了。") == ["他来了。", "我走了。"]


def test_lines_are_paragraphs_and_white_space_is_single() -> None:
    assert split_sentences("제목\n\n 첫째  문장.\t둘째\u00a0문장.\r\n...\n(  )\n\u2028") == ["제목", "첫째 문장.", "둘째 문장."]


def test_no_text_is_lost() -> None:
    text = " ".join(sentence for marked in PARAGRAPHS for sentence in marked.split(" | "))
    assert "".join(split_sentences(text)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.timeout(30)
def test_a_paragraph_of_any_shape_takes_linear_time() -> None:
    for hostile in (
        "(" * 100_000,
        "가." * 100_000,
        '"' * 100_000,
        ". " * 100_000,
        "“가. " * 50_000,
        "[1]" * 50_000,
        "가" + "." * 100_000,
        "(가. 나) " * 50_000,
    ):
        split_sentences(hostile)  # seconds if anything backtracks: the suite's own durations show it
