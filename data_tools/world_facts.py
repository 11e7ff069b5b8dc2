"""The invented world: people, organisations, places, works, products, and what is true of them.

It has two regions that share no name and no fact: a larger one, about which the training rows speak, and a smaller one, about
which the evaluation rows speak. Articles are written about both. Every name is put together from syllables; likeness to a real
one is chance. Numbers of things follow from the number of articles.
"""

import random
from dataclasses import dataclass, field
from typing import Union

REGION_SHARES = {"train": 0.7, "eval": 0.3}
LAST_YEAR = 2020

# kind: share of the articles. What is left over are people.
SHARES = {"company": 0.14, "school": 0.04, "party": 0.015, "society": 0.03, "group": 0.01, "city": 0.07, "work": 0.15, "product": 0.08}
ORGANISATIONS = ("company", "school", "party", "society")

_SURNAMES = "김 이 박 최 정 강 조 윤 장 임 한 오 서 신 권 황 안 송 류 전 홍 고 문 양 손 배 백 허 유 남 심 노 하 곽 성 차 주 우 구 민 진 지 엄 채 원 천".split()
_MALE = ("건 경 규 기 남 대 도 동 명 민 병 상 석 성 승 영 용 우 윤 재 정 종 준 진 창 태 하 현 호".split(),
         "건 관 구 국 권 규 균 근 기 길 남 덕 돈 득 룡 만 명 모 묵 문 배 범 복 석 섭 수 식 열 영 완 욱 운 웅 원 일 주 준 중 찬 철 탁 택 표 필 학 혁 현 호 환 훈".split())  # fmt: skip
_FEMALE = ("가 경 귀 금 나 다 단 미 민 보 복 서 선 성 소 수 순 연 영 예 옥 윤 은 정 주 지 진 채 혜 희".split(),
           "경 나 단 덕 란 례 린 림 매 미 빈 선 설 솔 숙 순 아 애 연 영 예 옥 온 윤 은 임 자 정 주 지 진 향 혜 홍 화 희".split())  # fmt: skip
_PLACE_SYLLABLES = ("가 나 다 라 마 바 자 고 노 도 로 모 보 소 오 초 두 무 수 주 미 비 시 해 세 은 금 단 한 산 강 남 북 새 솔 달 늘 참".split(),
                    "람 울 빛 벌 뫼 온 별 담 린 샘 터 결 눌 래 름 마루 여울 나래 다솜 누리".split())  # fmt: skip
_FIRM_SYLLABLES = ("가 나 다 루 미 바 세 에 유 지 카 코 타 테 파 하 네 라 모 벨 솔 아 인 엘 두 보 비 리 제 클".split(),
                   "온 론 렌 비아 텍 닉스 르미 나르 라온 로빈 젠 티스 노바 리온 센 담 솔라 월드 든 맥 바인 토르 디움 오름".split())  # fmt: skip
_WORK_WORDS = ("푸른 하얀 검은 붉은 잃어버린 마지막 첫 오래된 낯선 먼 작은 깊은 늦은 조용한 빈 젖은 흐린 긴 멈춘 부서진 따뜻한 외로운 돌아온 잠든 반가운 무거운 빛나는".split(),
               "강 바다 편지 우체국 골목 겨울 여름 정원 창문 기차 등대 거울 시계 나무 구름 다리 계단 항구 마을 언덕 달빛 그림자 발자국 목소리 손수건 우산 사진 일기 노래 섬 새벽 저녁 봄밤 눈길 바람".split(),
               ["", "", "의 기억", "의 노래", "의 아이들", "에서", "의 시간", "의 약속", "에게", "의 끝", "의 집", " 이야기"])  # fmt: skip


@dataclass(frozen=True)
class Occupation:
    """What somebody is, what such people make (a form of work, or "") and where they work (a kind of organisation)."""

    title: str
    form: str
    works_for: str
    post: str


# The titles and posts of one region do not occur in the other.
_OCCUPATIONS = {
    "train": (
        Occupation("시인", "시집", "society", "간사"),
        Occupation("화가", "그림", "school", "강사"),
        Occupation("영화감독", "영화", "society", "이사"),
        Occupation("작곡가", "노래", "school", "교수"),
        Occupation("물리학자", "책", "school", "교수"),
        Occupation("정치인", "", "party", "대변인"),
        Occupation("언론인", "책", "company", "편집장"),
        Occupation("배우", "", "society", "이사"),
        Occupation("건축가", "", "company", "부장"),
        Occupation("역사학자", "책", "school", "교수"),
        Occupation("의사", "", "company", "연구원"),
        Occupation("기업인", "", "company", "부사장"),
        Occupation("만화가", "만화", "company", "디자이너"),
        Occupation("기술자", "", "company", "연구원"),
    ),
    "eval": (
        Occupation("소설가", "소설", "society", "사무국장"),
        Occupation("조각가", "조각", "school", "조교수"),
        Occupation("극작가", "희곡", "society", "사무국장"),
        Occupation("가수", "음반", "society", "자문 위원"),
        Occupation("화학자", "책", "school", "조교수"),
        Occupation("국회의원", "", "party", "원내대표"),
        Occupation("평론가", "책", "company", "주필"),
        Occupation("무용가", "", "school", "조교수"),
        Occupation("공학자", "", "company", "연구소장"),
        Occupation("변호사", "", "company", "감사"),
        Occupation("사업가", "", "company", "전무"),
        Occupation("약사", "", "company", "과장"),
    ),
}
_HEAD_POSTS = {
    "train": {"company": "대표이사", "school": "총장", "party": "대표", "society": "회장"},
    "eval": {"company": "최고경영자", "school": "학장", "party": "총재", "society": "이사장"},
}
_FORM_KINDS = {"시집": "book", "소설": "book", "책": "book", "희곡": "book", "만화": "book", "영화": "film", "노래": "song", "음반": "song"}
_INDUSTRIES = {
    "전자": "전자 제품", "제약": "의약품", "식품": "식품", "건설": "건물", "통신": "통신 기기", "화학": "화학 제품", "자동차": "자동차",
    "소프트": "소프트웨어", "신문": "신문", "방송": "방송 프로그램", "출판사": "잡지", "가구": "가구", "조선": "선박", "섬유": "옷감",
    "항공": "항공기", "게임즈": "게임", "화장품": "화장품", "기계": "기계", "악기": "악기", "제과": "과자",
}  # fmt: skip
_WITHOUT_GOODS = ("신문", "방송", "건설")  # they make nothing that has a brand
_SOLID = ("전자 제품", "자동차", "통신 기기", "가구", "악기", "기계")  # they have a weight and a length
_BRAND_ENDINGS = {"통신 기기": "폰", "자동차": "카", "화장품": "샘", "선박": "호"}
_COMPANY_CLASS = {
    "신문": "신문사",
    "방송": "방송사",
    "출판사": "출판사",
    "소프트": "소프트웨어 회사",
    "게임즈": "게임 회사",
    "제과": "제과 회사",
}
_SCHOOL_CLASSES = {"대학교": "사립 대학교", "교육대학교": "교육 대학교", "예술대학": "예술 대학", "공과대학": "공과 대학"}
_SOCIETY_CLASSES = {
    "작가협회": "작가 단체",
    "예술원": "예술 단체",
    "연구소": "연구 기관",
    "문화재단": "문화 재단",
    "과학회": "학술 단체",
    "극단": "연극 단체",
}
_CITY_CLASSES = {"시": "도시", "군": "군", "읍": "읍"}


@dataclass(frozen=True)
class Day:
    """A date."""

    year: int
    month: int
    day: int

    def word(self, form: str) -> str:
        """How it is written: "year", "month" or "full"."""
        return {"year": f"{self.year}년", "month": f"{self.year}년 {self.month}월"}.get(form, f"{self.year}년 {self.month}월 {self.day}일")


Value = Union[str, Day, "Thing", list["Thing"]]


@dataclass(eq=False)
class Thing:
    """Anything that has a name: its kind, its name, its region and its facts. A fact with several values is a list."""

    kind: str
    name: str
    region: str
    facts: dict[str, Value] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Thing({self.kind}, {self.name})"

    def add(self, fact: str, thing: "Thing") -> None:
        """Add one value to a fact that may have several."""
        values = self.facts.setdefault(fact, [])
        assert isinstance(values, list)
        values.append(thing)


@dataclass
class Region:
    """One of the two halves of the world; `things` by kind."""

    name: str
    things: dict[str, list[Thing]]

    @property
    def organisations(self) -> list[Thing]:
        """Everything that can employ somebody."""
        return [thing for kind in ORGANISATIONS for thing in self.things[kind]]


def build_world(num_articles: int, seed: int) -> dict[str, Region]:
    """The two regions, `num_articles` things in all. The same arguments give the same world."""
    rng = random.Random(f"world {seed}")
    names = Names(rng)
    regions = {}
    left = num_articles
    for region, share in REGION_SHARES.items():
        count = left if region == list(REGION_SHARES)[-1] else round(num_articles * share)
        regions[region] = build_region(region, count, names, rng)
        left -= count
    return regions


def build_region(region: str, num_things: int, names: "Names", rng: random.Random) -> Region:
    """A region of `num_things` things, every fact filled in."""
    counts = {kind: max(2, round(num_things * share)) for kind, share in SHARES.items()}
    provinces = [names.place("도") for _ in range(4)]  # written of, but without an article
    cities = [_city(region, provinces, names, rng) for _ in range(counts["city"])]
    people = _people(region, num_things - sum(counts.values()), cities, names, rng)
    things: dict[str, list[Thing]] = {"city": cities, "person": people}
    things["group"] = [_group(region, number, cities, names, rng) for number in range(counts["group"])]
    for kind in ORGANISATIONS:
        things[kind] = [_organisation(kind, region, things, names, rng) for _ in range(counts[kind])]
    things["product"] = [_product(region, things["company"], names, rng) for _ in range(counts["product"])]
    _employ(region, things, rng)
    things["work"] = _works(region, counts["work"], people, names, rng)
    return Region(region, things)


class Names:
    """Gives out names, none of them twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._given: set[str] = set()

    def _new(self, draw: "list[list[str]]", ending: str = "") -> str:
        while True:
            name = "".join(self._rng.choice(syllables) for syllables in draw) + ending
            if name not in self._given:
                self._given.add(name)
                return name

    def person(self, surname: str, male: bool) -> str:
        """A surname and two syllables."""
        return self._new([[surname], *(_MALE if male else _FEMALE)])

    def place(self, ending: str) -> str:
        """A town, province, river or mountain."""
        return self._new(list(_PLACE_SYLLABLES), ending)

    def firm(self, ending: str) -> str:
        """A company or another organisation."""
        return self._new(list(_FIRM_SYLLABLES), ending)

    def work(self) -> str:
        """A title of a book, film, song or picture."""
        return self._new([[word + " " for word in _WORK_WORDS[0]], *_WORK_WORDS[1:]])

    def product(self, stem: str) -> str:
        """A brand and a model: 가온 K7, 가온 300, 가온폰 2."""
        while True:
            model = self._rng.choice((f"{self._rng.choice('ABCEGKLMNRSTXZ')}{self._rng.randint(1, 9)}", str(self._rng.randint(2, 99) * 10),
                                      f"{self._rng.randint(1, 9)}{self._rng.choice('ELMRSX')}", self._rng.choice(("플러스", "프로", "골드", "미니", "스타"))))  # fmt: skip
            name = f"{stem} {model}"
            if name not in self._given:
                self._given.add(name)
                return name


def _day(rng: random.Random, first: int, last: int) -> Day:
    return Day(rng.randint(first, max(first, last)), rng.randint(1, 12), rng.randint(1, 28))


def _city(region: str, provinces: list[str], names: Names, rng: random.Random) -> Thing:
    ending = rng.choice(("시", "시", "시", "군", "군", "읍"))
    facts: dict[str, Value] = {"class": _CITY_CLASSES[ending], "province": rng.choice(provinces)}
    facts |= {"river": names.place("강"), "mountain": names.place("산")}
    return Thing("city", names.place(ending), region, facts)


def _people(region: str, count: int, cities: list[Thing], names: Names, rng: random.Random) -> list[Thing]:
    """Families over four generations: a couple, then children, some of whom marry and have children."""
    people: list[Thing] = []
    single: dict[bool, list[Thing]] = {True: [], False: []}  # by sex

    def person(surname: str, male: bool, birth_year: int, **facts: Value) -> Thing:
        born = _day(rng, birth_year, birth_year)
        new = Thing("person", names.person(surname, male), region, {"sex": "남" if male else "여", "birth_date": born, **facts})
        new.facts["birth_place"] = rng.choice(cities)
        age = rng.randint(41, 93)
        if born.year + age <= LAST_YEAR:
            new.facts |= {"death_date": _day(rng, born.year + age, born.year + age), "death_place": rng.choice(cities)}
        else:
            new.facts["residence"] = rng.choice(cities)
        people.append(new)
        single[male].append(new)
        return new

    while len(people) < count:
        eldest = len(people) < 0.4 * count
        man = person(rng.choice(_SURNAMES), True, rng.randint(1885, 1935)) if eldest or not single[True] else rng.choice(single[True])
        fitting = [woman for woman in single[False] if abs(_birth(woman) - _birth(man)) < 9 and woman.name[0] != man.name[0]]
        surname = rng.choice([name for name in _SURNAMES if name != man.name[0]])
        woman = rng.choice(fitting) if fitting and not eldest else person(surname, False, _birth(man) + rng.randint(-4, 6))
        single[True].remove(man)
        single[False].remove(woman)
        man.facts |= {"wife": woman}
        woman.facts |= {"husband": man}
        siblings: list[Thing] = []
        for order in range(rng.choice((1, 2, 2, 3))):
            year = max(_birth(man), _birth(woman)) + 22 + 4 * order + rng.randint(0, 3)
            if year > 1990 or len(people) >= count:
                break
            male = rng.random() < 0.55
            child = person(man.name[0], male, year, father=man, mother=woman)
            if siblings:
                siblings[-1].facts["sibling"] = child
            siblings.append(child)
            for parent in (man, woman):
                parent.add("son" if male else "daughter", child)
                parent.add("child", child)
    return people[:count] if len(people) <= count else _forget(people, people[count:])


def _forget(people: list[Thing], surplus: list[Thing]) -> list[Thing]:
    """Take the last few out of the world again, and out of the facts of the others."""
    kept = [one for one in people if one not in surplus]
    for one in kept:
        one.facts = {fact: value for fact, value in one.facts.items() if value not in surplus}
    return kept


def _birth(person: Thing) -> int:
    born = person.facts["birth_date"]
    assert isinstance(born, Day)
    return born.year


def _group(region: str, number: int, cities: list[Thing], names: Names, rng: random.Random) -> Thing:
    """Every other one is a business group, which companies belong to; the others are of societies."""
    ending, what = ("그룹", "기업 집단") if number % 2 == 0 else (rng.choice(("연합회", "협의회")), "협의체")
    return Thing("group", names.firm(ending), region, {"class": what, "hq": rng.choice(cities), "founded": _day(rng, 1925, 1990)})


def _organisation(kind: str, region: str, things: dict[str, list[Thing]], names: Names, rng: random.Random) -> Thing:
    latest = {"school": 1920, "party": 1940}.get(kind, 1970)
    free = [one for one in things["person"] if "started" not in one.facts]
    founder = rng.choice([one for one in free if _birth(one) < latest] or free)
    died = founder.facts.get("death_date")
    founded = _day(
        rng, _birth(founder) + 27, min(LAST_YEAR - 5, died.year - 1 if isinstance(died, Day) else LAST_YEAR, _birth(founder) + 55)
    )
    facts: dict[str, Value] = {"founder": founder, "founded": founded, "hq": rng.choice(things["city"])}
    if kind == "company":
        ending = rng.choice(list(_INDUSTRIES))
        facts["class"] = _COMPANY_CLASS.get(ending, f"{ending} 회사")
        if ending not in _WITHOUT_GOODS:
            facts["goods"] = _INDUSTRIES[ending]
        facts["acronym"] = "".join(rng.choice("ABCDEFGHIJKLMNOPRSTUVWY") for _ in range(3))
    elif kind == "party":
        ending = rng.choice(("당", "민주당", "국민당", "자유당"))
        facts["class"] = "정당"
    else:
        classes = _SCHOOL_CLASSES if kind == "school" else _SOCIETY_CLASSES
        ending = rng.choice(list(classes))
        facts["class"] = classes[ending]
    facts["staff"] = str(rng.randint(3, 250) * 10)
    if kind in ("company", "society"):
        facts["group"] = rng.choice(things["group"][0 if kind == "company" else 1 :: 2])
    organisation = Thing(kind, names.firm(ending), region, facts)
    founder.facts["started"] = organisation
    if isinstance(facts.get("group"), Thing):
        facts["group"].add("member", organisation)
    assert isinstance(facts["hq"], Thing)
    facts["hq"].add("seat", organisation)
    return organisation


def _product(region: str, companies: list[Thing], names: Names, rng: random.Random) -> Thing:
    makers = [one for one in companies if "goods" in one.facts] or companies
    maker = rng.choice([one for one in makers if "product" not in one.facts] or makers)
    goods = str(maker.facts.get("goods", "제품"))
    founded = maker.facts["founded"]
    assert isinstance(founded, Day)
    stem = names.firm(_BRAND_ENDINGS.get(goods, ""))
    facts: dict[str, Value] = {"maker": maker, "class": goods, "issued": _day(rng, founded.year + 1, LAST_YEAR)}
    if goods in _SOLID:
        facts["solid"] = "yes"
    product = Thing("product", names.product(stem), region, facts)
    maker.add("product", product)
    return product


def _employ(region: str, things: dict[str, list[Thing]], rng: random.Random) -> None:
    """Give everybody an occupation, schools and mostly an employer, and every organisation a head."""
    heads = rng.sample(things["person"], sum(len(things[kind]) for kind in ORGANISATIONS))
    for kind in ORGANISATIONS:
        for organisation in things[kind]:
            head = heads.pop()
            head.facts |= {"heads": organisation, "employer": organisation, "post": _HEAD_POSTS[region][kind]}
            organisation.facts["head"] = head
    for one in things["person"]:
        occupation = rng.choice(_OCCUPATIONS[region])
        one.facts |= {"title": occupation.title, "form": occupation.form, "school": rng.choice(_open_schools(things["school"], one))}
        one.facts["high_school"] = rng.choice(_PLACE_SYLLABLES[0]) + rng.choice(_PLACE_SYLLABLES[1]) + "고등학교"
        if "employer" not in one.facts and rng.random() < 0.85:
            one.facts |= {"employer": rng.choice(things[occupation.works_for]), "post": occupation.post}
        employer, school = one.facts.get("employer"), one.facts["school"]
        if isinstance(employer, Thing) and "heads" not in one.facts:
            employer.add("worker", one)
        assert isinstance(school, Thing)
        school.add("graduate", one)
        for place, fact in (("birth_place", "native"), ("residence", "settler")):
            city = one.facts.get(place)
            if isinstance(city, Thing):
                city.add(fact, one)


def _open_schools(schools: list[Thing], pupil: Thing) -> list[Thing]:
    """The schools that stood when the pupil was 18, or all of them."""
    founded = [(school, school.facts["founded"]) for school in schools]
    return [school for school, day in founded if isinstance(day, Day) and day.year <= _birth(pupil) + 18] or schools


def _works(region: str, count: int, people: list[Thing], names: Names, rng: random.Random) -> list[Thing]:
    works: list[Thing] = []
    makers = [one for one in people if one.facts["form"]] or people
    while len(works) < count:
        maker = rng.choice([one for one in makers if "work" not in one.facts] or makers)
        form = str(maker.facts["form"]) or "책"
        died = maker.facts.get("death_date")
        last = died.year if isinstance(died, Day) else LAST_YEAR
        facts: dict[str, Value] = {"maker": maker, "form": form, "issued": _day(rng, _birth(maker) + 20, min(last, _birth(maker) + 70))}
        work = Thing("work", names.work(), region, facts)
        maker.add("work", work)
        maker.add(_FORM_KINDS.get(form, "picture"), work)
        works.append(work)
    return works
