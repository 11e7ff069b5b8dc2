"""Makes up the invented world: who lives where, who founded what, who married whom.

It has two regions that share no name and no fact: a larger one, about which the training rows speak, and a smaller one, about
which the evaluation rows speak. Articles are written about both. How many things of a kind there are follows from the number of articles.
"""

import random
from dataclasses import dataclass

from data_tools.world_facts import LAST_YEAR, ORGANISATIONS, Day, Region, Thing, Value
from data_tools.world_names import Names

REGION_SHARES = {"train": 0.7, "eval": 0.3}

# kind: share of the articles. The rest are people.
SHARES = {"company": 0.14, "school": 0.04, "party": 0.015, "society": 0.03, "group": 0.01, "city": 0.07, "work": 0.15, "product": 0.08}


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
# form of a work: the kind of verb that goes with it
_FORM_KINDS = {
    "시집": "book", "소설": "book", "책": "book", "희곡": "book", "만화": "book", "영화": "film", "노래": "song", "음반": "song",
    "그림": "picture", "조각": "picture",
}  # fmt: skip
# ending of a name: what it is
_COMPANY_CLASSES = {
    name: f"{name} 회사"
    for name in ("전자", "제약", "식품", "건설", "통신", "화학", "자동차", "가구", "조선", "섬유", "항공", "화장품", "기계", "악기", "제과")
} | {"소프트": "소프트웨어 회사", "신문": "신문사", "방송": "방송사", "출판사": "출판사", "게임즈": "게임 회사"}
_GOODS = {name: name for name in ("식품", "자동차", "가구", "화장품", "기계", "악기")} | {
    "전자": "전자 제품", "제약": "의약품", "통신": "통신 기기", "화학": "화학 제품", "소프트": "소프트웨어", "출판사": "잡지",
    "조선": "선박", "섬유": "옷감", "항공": "항공기", "게임즈": "게임", "제과": "과자",
}  # fmt: skip
_SOLID = ("전자 제품", "자동차", "통신 기기", "가구", "악기", "기계")  # they have a weight and a length
_BRAND_ENDINGS = {"통신 기기": "폰", "자동차": "카", "화장품": "샘", "선박": "호"}
_SCHOOL_CLASSES = {"대학교": "사립 대학교", "교육대학교": "교육 대학교", "예술대학": "예술 대학", "공과대학": "공과 대학"}
_PARTY_CLASSES = {"당": "정당", "민주당": "정당", "국민당": "정당", "자유당": "정당"}
_SOCIETY_CLASSES = {"작가협회": "작가 단체", "예술원": "예술 단체", "연구소": "연구 기관", "문화재단": "문화 재단"} | {
    "과학회": "학술 단체", "극단": "연극 단체",
}  # fmt: skip
_CITY_CLASSES = {"시": (90, 900, "도시"), "군": (21, 89, "군"), "읍": (4, 9, "읍")}  # population in thousands, at least and at most
_LATEST_FOUNDERS = {"company": 1970, "school": 1920, "party": 1940, "society": 1970}  # born before


def build_world(num_articles: int, name_parts: dict[str, tuple[str, ...]], seed: int) -> dict[str, Region]:
    """The two regions, `num_articles` things in all. The same arguments give the same world."""
    rng = random.Random(f"world {seed}")
    names = Names(name_parts, rng)
    num_train = round(num_articles * REGION_SHARES["train"])
    return {
        region: Builder(region, names, rng).build(number) for region, number in (("train", num_train), ("eval", num_articles - num_train))
    }


class Builder:
    """Makes up one region. The parts follow in this order: places, people, organisations, products, occupations, works."""

    def __init__(self, region: str, names: Names, rng: random.Random) -> None:
        self.region = region
        self.names = names
        self.rng = rng
        self.provinces = [names.place("도") for _ in range(4)]  # mentioned, but without an article
        self.high_schools = [names.place("고등학교") for _ in range(60)]  # the same
        self.things: dict[str, list[Thing]] = {"person": []}
        self._single: dict[bool, list[Thing]] = {True: [], False: []}  # men, women

    def build(self, num_things: int) -> Region:
        """The region, with `num_things` things."""
        counts = {kind: max(2, round(num_things * share)) for kind, share in SHARES.items()}
        self.things["city"] = [self._city() for _ in range(counts["city"])]
        self._people(num_things - sum(counts.values()))
        self.things["group"] = [self._group(number) for number in range(counts["group"])]
        for kind in ORGANISATIONS:
            self.things[kind] = [self._organisation(kind) for _ in range(counts[kind])]
        self.things["product"] = [self._product() for _ in range(counts["product"])]
        self._appoint_heads()
        for person in self.things["person"]:
            self._educate_and_employ(person)
        self.things["work"] = [self._work() for _ in range(counts["work"])]
        return Region(self.region, self.things)

    def _day(self, first: int, last: int) -> Day:
        return Day(self.rng.randint(first, max(first, last)), self.rng.randint(1, 12), self.rng.randint(1, 28))

    def _anywhere(self) -> Thing:
        return self.rng.choice(self.things["city"])

    def _city(self) -> Thing:
        ending = self.rng.choice(("시", "시", "시", "군", "군", "읍"))
        smallest, largest, what = _CITY_CLASSES[ending]
        thousands = self.rng.randint(smallest, largest)
        facts: dict[str, Value] = {"class": what, "province": self.rng.choice(self.provinces)}
        facts["population"] = f"{thousands // 10}만 {thousands % 10}천" if thousands > 10 else f"{thousands}천"
        facts |= {"river": self.names.place("강"), "mountain": self.names.place("산")}
        return Thing("city", self.names.place(ending), facts)

    def _person(self, surname: str, male: bool, birth_year: int) -> Thing:
        facts: dict[str, Value] = {"sex": "남" if male else "여", "birth_date": self._day(birth_year, birth_year)}
        facts["birth_place"] = self._anywhere()
        death_year = birth_year + self.rng.randint(41, 93)
        if death_year <= LAST_YEAR:
            facts |= {"death_date": self._day(death_year, death_year), "death_place": self._anywhere()}
        else:
            facts["residence"] = self._anywhere()
        person = Thing("person", self.names.person(surname, male), facts)
        self.things["person"].append(person)
        self._single[male].append(person)
        return person

    def _people(self, number: int) -> None:
        """Families over some generations: couples without known parents at first, then also children of theirs."""
        people = self.things["person"]
        while len(people) < number:
            if len(people) < 0.4 * number or not self._single[True]:
                man = self._person(self.rng.choice(self.names.surnames), True, self.rng.randint(1885, 1935))
                fitting = []
            else:
                man = self.rng.choice(self._single[True])
                fitting = [woman for woman in self._single[False] if abs(_birth(woman) - _birth(man)) < 9 and woman.name[0] != man.name[0]]
            if len(people) == number:
                break
            surname = self.rng.choice([name for name in self.names.surnames if name != man.name[0]])
            woman = self.rng.choice(fitting) if fitting else self._person(surname, False, _birth(man) + self.rng.randint(-4, 6))
            self._single[True].remove(man)
            self._single[False].remove(woman)
            man.facts["wife"], woman.facts["husband"] = woman, man
            self._children(man, woman, number)

    def _children(self, man: Thing, woman: Thing, number: int) -> None:
        """One to three children, unless it is too late for them or there are enough people."""
        elder = None
        for order in range(self.rng.choice((1, 2, 2, 3))):
            year = max(_birth(man), _birth(woman)) + 22 + 4 * order + self.rng.randint(0, 3)
            if year > 1990 or len(self.things["person"]) >= number:
                break
            male = self.rng.random() < 0.55
            child = self._person(man.name[0], male, year)
            child.facts |= {"father": man, "mother": woman}
            if elder:
                elder.facts["sibling"] = child
            elder = child
            for parent in (man, woman):
                parent.add("son" if male else "daughter", child)
                parent.add("child", child)

    def _group(self, number: int) -> Thing:
        """Every other one is a business group, to which companies belong; societies belong to the others."""
        ending, what = ("그룹", "기업 집단") if number % 2 == 0 else (self.rng.choice(("연합회", "협의회")), "협의체")
        return Thing("group", self.names.firm(ending), {"class": what, "hq": self._anywhere(), "founded": self._day(1925, 1990)})

    def _organisation(self, kind: str) -> Thing:
        free = [person for person in self.things["person"] if "started" not in person.facts]
        founder = self.rng.choice([person for person in free if _birth(person) < _LATEST_FOUNDERS[kind]] or free)
        last = min(LAST_YEAR - 5, _last_year(founder) - 1, _birth(founder) + 55)
        hq = self._anywhere()
        facts: dict[str, Value] = {"founder": founder, "founded": self._day(_birth(founder) + 27, last), "hq": hq}
        facts["staff"] = str(self.rng.randint(3, 250) * 10)
        classes = {"company": _COMPANY_CLASSES, "school": _SCHOOL_CLASSES, "party": _PARTY_CLASSES, "society": _SOCIETY_CLASSES}[kind]
        ending = self.rng.choice(list(classes))
        facts["class"] = classes[ending]
        if kind == "company":
            facts["acronym"] = "".join(self.rng.choice("ABCDEFGHIJKLMNOPRSTUVWY") for _ in range(3))
            if ending in _GOODS:
                facts["goods"] = _GOODS[ending]
        organisation = Thing(kind, self.names.firm(ending), facts)
        founder.facts["started"] = organisation
        hq.add("seat", organisation)
        if kind in ("company", "society"):
            group = self.rng.choice(self.things["group"][0 if kind == "company" else 1 :: 2])
            organisation.facts["group"] = group
            group.add("member", organisation)
        return organisation

    def _product(self) -> Thing:
        makers = [company for company in self.things["company"] if "goods" in company.facts]
        maker = self.rng.choice([company for company in makers if "product" not in company.facts] or makers)
        goods = str(maker.facts["goods"])
        founded = maker.day("founded")
        facts: dict[str, Value] = {"maker": maker, "class": goods, "issued": self._day(founded.year + 1 if founded else 1950, LAST_YEAR)}
        if goods in _SOLID:
            facts["solid"] = "yes"
        product = Thing("product", self.names.product(self.names.firm(_BRAND_ENDINGS.get(goods, ""))), facts)
        maker.add("product", product)
        return product

    def _appoint_heads(self) -> None:
        organisations = [(kind, organisation) for kind in ORGANISATIONS for organisation in self.things[kind]]
        heads = self.rng.sample(self.things["person"], len(organisations))
        for (kind, organisation), head in zip(organisations, heads, strict=True):
            head.facts |= {"heads": organisation, "employer": organisation, "post": _HEAD_POSTS[self.region][kind]}
            organisation.facts["head"] = head

    def _educate_and_employ(self, person: Thing) -> None:
        """Give somebody an occupation, schools and usually an employer; record the person with these, and with the places."""
        occupation = self.rng.choice(_OCCUPATIONS[self.region])
        schools = self.things["school"]
        school = self.rng.choice([one for one in schools if _year(one, "founded") <= _birth(person) + 18] or schools)
        person.facts |= {
            "title": occupation.title,
            "form": occupation.form,
            "school": school,
            "high_school": self.rng.choice(self.high_schools),
        }
        school.add("graduate", person)
        if "heads" not in person.facts and self.rng.random() < 0.85:
            employer = self.rng.choice(self.things[occupation.works_for])
            person.facts |= {"employer": employer, "post": occupation.post}
            employer.add("worker", person)
        for place, fact in (("birth_place", "native"), ("residence", "settler")):
            city = person.thing(place)
            if city:
                city.add(fact, person)

    def _work(self) -> Thing:
        makers = [person for person in self.things["person"] if person.facts["form"]]
        maker = self.rng.choice([person for person in makers if "work" not in person.facts] or makers)
        form = str(maker.facts["form"])
        issued = self._day(_birth(maker) + 20, min(_last_year(maker), _birth(maker) + 70))
        work = Thing("work", self.names.work(), {"maker": maker, "form": form, "issued": issued})
        maker.add("work", work)
        maker.add(_FORM_KINDS[form], work)
        return work


def _year(thing: Thing, fact: str) -> int:
    day = thing.day(fact)
    assert day is not None
    return day.year


def _birth(person: Thing) -> int:
    return _year(person, "birth_date")


def _last_year(person: Thing) -> int:
    return _year(person, "death_date") if "death_date" in person.facts else LAST_YEAR
