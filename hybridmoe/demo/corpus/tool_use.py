"""Calls of get_weather and calculator, and replies from their results.

Held out: cities (made of syllables, as well as real ones) and expressions. The result of a tool
is drawn at random for the weather, so that the reply can only come from the tool turn.
"""

from __future__ import annotations

import json
import random
from typing import Any

from hybridmoe.demo.corpus.arithmetic import draw_pair, pair_is_held
from hybridmoe.demo.corpus.base import Call, Split, Strand, Turn, draw, syllables, typed
from hybridmoe.demo.corpus.world import CAPITALS


def _tool(name: str, about: str, argument: str, hint: str = "") -> dict[str, Any]:
    """Declare a tool with one string argument, OpenAI-style."""
    schema = {"type": "string", **({"description": hint} if hint else {})}
    parameters = {"type": "object", "properties": {argument: schema}, "required": [argument]}
    return {
        "type": "function",
        "function": {"name": name, "description": about, "parameters": parameters},
    }


WEATHER = _tool("get_weather", "Get the weather in a city", "city")
CALCULATOR = _tool("calculator", "Calculate an expression", "expression")
_WEATHER_FORMS = [WEATHER, WEATHER, _tool("get_weather", "Get the current weather", "city"),
                  _tool("get_weather", "Weather of a city", "city", "Name of the city"),
]  # fmt: skip
_CALCULATOR_FORMS = [CALCULATOR, CALCULATOR, _tool("calculator", "A calculator", "expression"),
                     _tool("calculator", "Evaluate an arithmetic expression", "expression",
                           "The expression, such as 2*3")]  # fmt: skip

# Large cities outside the capitals family; countries are places, too.
_PLACES = (
    """New York|Los Angeles|Chicago|Boston|Seattle|Houston|Miami|Denver|Dallas|Atlanta
Toronto|Montreal|Vancouver|Calgary|Guadalajara|Monterrey|Bogota|Medellin|Quito|Caracas|La Paz
Montevideo|Rio de Janeiro|Sao Paulo|Salvador|Recife|Cordoba|Rosario|Manchester|Liverpool|Glasgow
Edinburgh|Bristol|Leeds|Cardiff|Belfast|Cork|Lyon|Marseille|Nice|Toulouse|Bordeaux|Lille|Hamburg
Munich|Cologne|Frankfurt|Stuttgart|Dresden|Leipzig|Zurich|Geneva|Basel|Salzburg|Graz|Milan|Naples
Turin|Florence|Venice|Bologna|Palermo|Barcelona|Valencia|Seville|Bilbao|Porto|Rotterdam|Utrecht
Antwerp|Ghent|Bergen|Gothenburg|Malmo|Aarhus|Tampere|Turku|Tallinn|Riga|Vilnius|Minsk|Kyiv|Odesa
Krakow|Gdansk|Prague|Brno|Bratislava|Zagreb|Belgrade|Sofia|Bucharest|Istanbul|Izmir|Tbilisi|Baku
Yerevan|Tehran|Baghdad|Damascus|Beirut|Jerusalem|Amman|Riyadh|Dubai|Doha|Kuwait|Muscat|Karachi
Lahore|Mumbai|Kolkata|Chennai|Bangalore|Pune|Jaipur|Dhaka|Kathmandu|Colombo|Yangon|Phuket|Saigon
Singapore|Jakarta|Surabaya|Manila|Cebu|Taipei|Hong Kong|Macau|Shanghai|Shenzhen|Chengdu|Wuhan
Nanjing|Xian|Harbin|Busan|Incheon|Osaka|Kyoto|Nagoya|Sapporo|Fukuoka|Hiroshima|Sydney|Melbourne
Brisbane|Perth|Adelaide|Auckland|Wellington|Honolulu|Anchorage|Lagos|Abuja|Accra|Dakar|Tunis
Algiers|Casablanca|Rabat|Tripoli|Alexandria|Khartoum|Addis Ababa|Kampala|Kigali|Mombasa|Luanda
Lusaka|Harare|Maputo|Durban|Pretoria|Cape Town|Reykjavik|Nuuk|Samarkand|Tashkent|Almaty|Novosibirsk
Kazan|Samara|Perm|Omsk|Ulaanbaatar|Vientiane|Phnom Penh|Male|Suva|Nassau|Kingston|San Juan|Panama
San Francisco|San Diego|Las Vegas|New Orleans|Salt Lake City|Portland|Phoenix|Detroit|Oakland
""".replace("\n", "|")
    .strip("|")
    .split("|")
)

_SKIES = ["sunny", "cloudy", "rainy", "snowy", "windy", "foggy", "stormy", "clear"]
_WEATHER_ASKS = ["What is the weather in {c}?", "How is the weather in {c}?", "Weather in {c}?",
                 "Tell me the weather in {c}.", "What is the weather like in {c}?",
                 "Is it raining in {c}?", "How warm is it in {c}?",
                 "{c}的天气怎么样？"]  # fmt: skip
_CALC_ASKS = ["What is {e}?", "Calculate {e}.", "{e}", "{e}=", "How much is {e}?", "Compute {e}.",
              "Please calculate {e}."]  # fmt: skip


def declarations(rng: random.Random) -> list[dict[str, Any]]:
    """Draw the tools that a dialogue declares, and their wording."""
    weather, calculator = rng.choice(_WEATHER_FORMS), rng.choice(_CALCULATOR_FORMS)
    roll = rng.random()
    if roll < 0.25:
        return [weather]
    if roll < 0.50:
        return [calculator]
    return [weather, calculator] if rng.random() < 0.5 else [calculator, weather]


def _city(rng: random.Random, split: Split) -> str:
    def make() -> tuple[str, str]:
        roll = rng.random()
        if roll < 0.25:
            city = rng.choice(CAPITALS)[rng.random() < 0.8]
        elif roll < 0.6:
            city = rng.choice(_PLACES)
        else:
            city = syllables(rng, 1, 3).capitalize()
        return f"city|{city}", city

    return draw(rng, split, make)


def _look_up(rng: random.Random, city: str) -> tuple[Call, str, str, str]:
    """Draw a call and three replies: plain, about rain, about warmth."""
    sky, celsius = rng.choice(_SKIES), rng.randint(-15, 40)
    given = {"city": city, "temperature": celsius, "weather": sky}
    if rng.random() < 0.3:
        del given["city"]
    plain = f"It is {sky} in {city}, {celsius} degrees."
    rain = f"{'Yes' if sky == 'rainy' else 'No'}, it is {sky} in {city}."
    warm = f"It is {celsius} degrees in {city}."
    call = Call("get_weather", {"city": city}, json.dumps(given, separators=(", ", ": ")))
    return call, plain, rain, warm


def weather(rng: random.Random, split: Split) -> Strand:
    """Draw a question about one city, or two cities with two calls in one turn."""
    city = _city(rng, split)
    call, plain, rain, warm = _look_up(rng, city)
    if rng.random() < 0.2:
        other = _city(rng, split)
        second, other_plain, _, _ = _look_up(rng, other)
        ask = rng.choice(["What is the weather in {c} and {d}?", "Weather in {c} and {d}?"])
        user = typed(rng, ask.format(c=city, d=other))
        reply = f"{plain} {other_plain}"
        return Strand((Turn("tools", user.replace(city.lower(), city).replace(other.lower(), other),
                            reply, calls=(call, second)),))  # fmt: skip
    ask = rng.choice(_WEATHER_ASKS)
    user = typed(rng, ask).format(c=city).replace("{C}", city)
    if ask.startswith("{c}的"):
        # The Chinese reply copies the English words of the result.
        given = json.loads(call.result)
        reply = f"{city}：{given['weather']}，{given['temperature']}度。"
    else:
        reply = rain if "raining" in ask else warm if "warm" in ask else plain
    return Strand((Turn("tools", user, reply, calls=(call,)),))


def _expression(rng: random.Random, split: Split) -> tuple[str, str]:
    """Draw an expression and its value; sums of two-digit numbers obey the arithmetic split."""
    if rng.random() < 0.3:
        a, sign, b = draw_pair(rng, split)
        return f"{a}{sign}{b}", str(a + b if sign == "+" else a - b)

    def make() -> tuple[str, tuple[str, str]]:
        digits = rng.choice([2, 3, 3, 4])
        a = rng.randint(10 ** (digits - 1), 10**digits - 1)
        b = rng.randint(2, 10 ** rng.choice([1, 2, 3]) - 1)
        sign = rng.choice("+-**/")
        if sign == "/":
            a = b * rng.randint(2, 99)
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        return f"calc|{a}{sign}{b}", (f"{a}{sign}{b}", str(value))

    while True:
        text, value = draw(rng, split, make)
        sign = next((s for s in "+-" if s in text[1:]), "")
        if not sign:
            return text, value
        a, b = (int(part) for part in text.split(sign))
        # A two-digit pair must not cross the arithmetic split here.
        if max(a, b) > 99 or pair_is_held(a, sign, b) == (split == "held"):
            return text, value


_WORDS = {"+": [" + ", " plus "], "-": [" - ", " minus "], "*": [" * ", " times ", " x "],
          "/": [" / ", " divided by "]}  # fmt: skip


def calculation(rng: random.Random, split: Split) -> Strand:
    """Draw an expression for the calculator, which is always called if declared."""
    expression, value = _expression(rng, split)
    spoken = expression
    for sign, forms in _WORDS.items():
        if sign in expression[1:] and rng.random() < 0.75:
            spoken = expression.replace(sign, rng.choice(forms))
    user = typed(rng, rng.choice(_CALC_ASKS)).format(e=spoken)
    call = Call("calculator", {"expression": expression}, json.dumps({"result": int(value)}))
    if rng.random() < 0.3:
        call = Call("calculator", {"expression": expression}, value)
    return Strand((Turn("tools", user, f"{expression}={value}", calls=(call,)),))
