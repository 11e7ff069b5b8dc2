"""Sentence ends, from hand-split paragraphs."""

import pickle
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from data_tools.errors import UserError
from data_tools.sentences import make_splitter, split_sentences

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
    "그 소설은 1945. 8. 15. 나왔고 3. 1. 다시 나왔다. | J. R. R. 톨킨이 썼다. | 제1항은 www.example.org/a.b?c=1 을 보라. | 끝.",
    "이것은 전화기이다. | iOS는 운영 체제이다. | The car was built by the U.S. army and sold.",
    "그는 \"모른다. 묻지 마라.”고 했다. | 그녀는 “안다. 물어라.\"라고 했다. | 그는 '간다. 온다.'라고 썼다. | 끝났다.",
    # without a mark
    "반찬도 국도 맛있어요 | 이 절은 고려 때 지어졌다. | 직원들이 참 친절합니다 | 다음 달에 또 가겠습니다 | 그는 1920년에 태어났다.",
    "집에 가는 길 좀 알려줘 | 시청까지 얼마나 걸릴까 | 이 강은 남쪽으로 흐른다. | 다들 좋다고 하지요~ | 값은 그대로이다.",
    "버스는 새벽 네 시부터 운행한다 | 막차는 밤 열한 시에 있다 | 표는 역에서 살 수 있음 | 어린이는 무료이다.",
    "난리 통에 절이 타서 스님들이 떠나게 되었다 | 종은 읍내로 옮긴 것으로 알려졌다 | 지금은 터만 남았다.",
    "산은 높고 물은 맑았다 아니다 하는 것은 보는 사람에게 달려 있다 | 그래도 이름난 곳인 것이다 | 봄에 많이 찾는다.",
    "마침표 없는 제목",
]
# what looks like an ending without a mark, and is none
WHOLE = [
    "그가 이겼다 하더라도 남는 것은 없었다 한다.",
    "성이 무너졌다 전해지나 그렇게 적혀 있다 해도 증거가 있다 보기 어렵다.",
    "그는 왔다 갔다 했고 문을 열었다 닫는 소리가 났다.",
    "나는 가겠다 다짐했고 너는 못 가겠다 말했다.",
    "그는 제안을 받았다 거절했다 다시 받았다 했다.",
    "우간다 정부와 혼다 자동차, 그리고 바다 밑의 게임 회사는 필요 없다.",
    "시어머니 댁과 조반니 벨리니의 집이 어디 있는지 어떻게 아니까 가요 대상을 준다.",
    "전함 세 척과 최다 득점과 다음 경기와 처음 본 마음 깊은 사람.",
    "그는 공을 보여줘, 친구를 웃게 하고 형에게 넘겨줘 점수를 얻게 했다.",
    "노래 '그대 돌아와요 부산으로'와 “여기 있다 그래서 간다”와 《나는 좋아요 그대도》는 유명하다.",
    "그는 어떻게 될까 걱정하며 얼마나 걸릴까 모른다고 했다.",
    "맛있어요 라고 했다.",
    "그렇게 되었다 (그러나 아니다) 고 썼다.",
    "방송 안녕하세요 여러분 편에 나왔다.",
    "고마워요 그대 하고 노래했다.",
    "그는 산에 가니 꽃이 피었다고 썼다.",
    "그는 길을 잃어, 지도를 보여줘 벗들을 웃게 했다.",
    "처음 이 고을에 온 사람들에게 오래된 우물과 성문이 어디에 있는지를 하나하나 보여줘 길을 잃지 않게 했다.",
]


@pytest.mark.parametrize("marked", PARAGRAPHS)
def test_hand_split_paragraphs(marked: str) -> None:
    expected = marked.split(" | ")
    assert split_sentences(" ".join(expected)) == expected


@pytest.mark.parametrize("sentence", WHOLE)
def test_what_goes_on_is_not_split(sentence: str) -> None:
    assert split_sentences(sentence) == [sentence]


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
        "“" * 100_000,
        "가. " * 100_000,
        "..." * 50_000,
        ". " * 100_000,
        "“가. " * 50_000,
        "[1]" * 50_000,
        "가" + "." * 100_000,
        "(가. 나) " * 50_000,
        "(있다 그는) " * 100_000,
        "a, 보여줘 그 " * 50_000,
        "어디 있니 " * 50_000,
        "있다 " + "가" * 500_000,
    ):
        begin = time.process_time()
        split_sentences(hostile)
        assert time.process_time() - begin < 5, hostile[:10]  # a tenth of it, usually


def test_a_splitter_is_made_by_name() -> None:
    assert make_splitter("rules") is split_sentences and pickle.loads(pickle.dumps(make_splitter("rules"))) is split_sentences
    with pytest.raises(UserError, match="expected rules, kiwi or lines, found 'Kiwi'"):
        make_splitter("Kiwi")


def test_kiwi_is_imported_when_asked_for_and_keeps_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kiwipiepy", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[kiwi\]'"):
        make_splitter("kiwi")

    class Kiwi:
        def __init__(self, num_workers: int) -> None:
            assert num_workers == 1  # prepare has its own workers

        def split_into_sents(self, text: str) -> list[SimpleNamespace]:
            assert text and text == text.strip() and "  " not in text
            return [SimpleNamespace(text=piece) for piece in text.split("/")]

    module = ModuleType("kiwipiepy")
    module.Kiwi = Kiwi  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kiwipiepy", module)
    try:
        split = make_splitter("kiwi")
        assert make_splitter("kiwi") is split  # loaded once in a process
        assert split(" 첫째\t 글 / ... /둘째\n\n \n셋째 ") == ["첫째 글", "둘째", "셋째"]
    finally:
        make_splitter.cache_clear()
