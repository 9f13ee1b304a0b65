"""Days, months, capitals and units: small tables, in several phrasings.

Held out are pairs of item and phrasing, since the tables themselves must be learned whole.
"""

# Lists of words read best as words.
# ruff: noqa: SIM905

from __future__ import annotations

import random

from hybridmoe.demo.corpus.base import Split, Strand, Turn, simple, typed

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_ZH_DAYS = "星期一 星期二 星期三 星期四 星期五 星期六 星期日".split()
MONTHS = """January February March April May June July August September October November
December""".split()
_ZH_MONTHS = "一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月".split()
_LENGTHS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"

CAPITALS = [
    row.split("|")
    for row in """France|Paris|法国|巴黎
Germany|Berlin|德国|柏林
Italy|Rome|意大利|罗马
Spain|Madrid|西班牙|马德里
Portugal|Lisbon
Austria|Vienna
Poland|Warsaw
Greece|Athens|希腊|雅典
Norway|Oslo
Sweden|Stockholm
Finland|Helsinki
Denmark|Copenhagen
Ireland|Dublin
England|London|英国|伦敦
Russia|Moscow|俄罗斯|莫斯科
China|Beijing|中国|北京
Japan|Tokyo|日本|东京
South Korea|Seoul|韩国|首尔
India|New Delhi
Egypt|Cairo|埃及|开罗
Kenya|Nairobi
Turkey|Ankara
Canada|Ottawa|加拿大|渥太华
Mexico|Mexico City
Brazil|Brasilia
Argentina|Buenos Aires
Chile|Santiago
Peru|Lima
Cuba|Havana
Australia|Canberra|澳大利亚|堪培拉
Hungary|Budapest
Switzerland|Bern
Belgium|Brussels
the Netherlands|Amsterdam
Thailand|Bangkok|泰国|曼谷
Vietnam|Hanoi""".split("\n")
]

# big unit, small unit, factor
_UNITS = [("metres", "centimetres", 100), ("kilometres", "metres", 1000),
          ("kilograms", "grams", 1000), ("litres", "millilitres", 1000), ("hours", "minutes", 60),
          ("minutes", "seconds", 60), ("weeks", "days", 7), ("days", "hours", 24),
          ("years", "months", 12), ("centimetres", "millimetres", 10),
          ("tonnes", "kilograms", 1000), ("dozens", "pieces", 12)]  # fmt: skip


def days(rng: random.Random, split: Split) -> Strand:
    """Draw a question about the day after, before, or two days after a day of the week."""

    def make() -> tuple[str, Turn]:
        i = rng.randrange(7)
        day = DAYS[i]
        step, ask = rng.choice([
            (1, "What day comes after {d}?"), (1, "Which day follows {d}?"),
            (-1, "What day comes before {d}?"), (-1, "Which day is before {d}?"),
            (1, "If today is {d}, what is tomorrow?"), (-1, "If today is {d}, what was yesterday?"),
            (2, "What day is two days after {d}?"), (3, "What day is three days after {d}?"),
            (1, "Today is {d}. What day is tomorrow?"), (1, "zh后"), (-1, "zh前"),
        ])  # fmt: skip
        answer, zh = DAYS[(i + step) % 7], _ZH_DAYS[(i + step) % 7] + "。"
        key = f"{ask}|{i}"
        if ask.startswith("zh"):
            user = f"{_ZH_DAYS[i]}的{'后' if step > 0 else '前'}一天是星期几？"
            return key, Turn("", typed(rng, user), zh, short=zh, zh=zh)
        return key, Turn("", typed(rng, ask.format(d=day)), answer + ".", short=answer, zh=zh)

    return simple(rng, split, "days", make)


def months(rng: random.Random, split: Split) -> Strand:
    """Draw a question about the neighbours, numbers or lengths of months."""

    def make() -> tuple[str, Turn]:
        i = rng.randrange(12)
        kind = rng.randrange(8)
        ask = [
            "What month comes after {m}?", "What month comes before {m}?",
            "How many days does {m} have?", "What is the {o} month?",
            "What number is {m}?", "Which month follows {m}?", "Which month is before {m}?",
            "How many days are in {m}?",
        ][kind]  # fmt: skip
        user = typed(rng, ask.format(m=MONTHS[i], o=_ORDINALS.split()[i]))
        if kind in (2, 4, 7):
            answer = str(i + 1 if kind == 4 else _LENGTHS[i])
            return f"{ask}|{i}", Turn("", user, answer, short=answer, zh=answer)
        j = (i + (1 if kind in (0, 5) else -1 if kind in (1, 6) else 0)) % 12
        return f"{ask}|{i}", Turn(
            "", user, MONTHS[j] + ".", short=MONTHS[j], zh=_ZH_MONTHS[j] + "。"
        )

    return simple(rng, split, "months", make)


def capitals(rng: random.Random, split: Split) -> Strand:
    """Draw a question about the capital of a country, or the country of a capital."""

    def make() -> tuple[str, Turn]:
        row = rng.choice(CAPITALS)
        country, city = row[:2]
        zh = row[3] + "。" if len(row) == 4 else ""
        if zh and rng.random() < 0.3:
            ask = rng.choice(["{c}的首都是哪里？", "{c}的首都是什么？", "{c}的首都在哪？"])
            user = typed(rng, ask.format(c=row[2]))
            return f"{ask}|{city}", Turn("", user, zh, short=zh, zh=zh)
        if rng.random() < 0.3:
            ask = rng.choice(["{t} is the capital of which country?",
                              "Which country has the capital {t}?"])  # fmt: skip
            name = country[:1].upper() + country[1:]
            zh = row[2] + "。" if len(row) == 4 else ""
            return f"{ask}|{city}", Turn("", typed(rng, ask.format(t=city)), name + ".",
                                         short=name, zh=zh)  # fmt: skip
        ask = rng.choice(
            [
                "What is the capital of {c}?",
                "Capital of {c}?",
                "Name the capital of {c}.",
                "Which city is the capital of {c}?",
                "Tell me the capital of {c}.",
            ]
        )
        user = typed(rng, ask.format(c=country))
        return f"{ask}|{city}", Turn("", user, city + ".", short=city, zh=zh)

    return simple(rng, split, "capitals", make)


def units(rng: random.Random, split: Split) -> Strand:
    """Draw a conversion of one to twelve big units into small ones."""

    def make() -> tuple[str, Turn]:
        big, small, factor = rng.choice(_UNITS)
        count = rng.randint(1, 12)
        name = (
            big
            if count > 1
            else {"metres": "metre", "centimetres": "centimetre"}.get(big, big[:-1])
        )
        ask = rng.choice(["How many {s} are in {n} {b}?", "{n} {b} in {s}?",
                          "Convert {n} {b} to {s}.",
                          "How many {s} is {n} {b}?"])  # fmt: skip
        user = typed(rng, ask.format(s=small, n=count, b=name))
        value = str(count * factor)
        return f"{ask}|{count}|{big}", Turn("", user, f"{value} {small}.", short=value)

    return simple(rng, split, "units", make)
