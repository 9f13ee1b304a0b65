"""The price of tokens: energy and hardware by hand."""

import pytest

from hybridmoe.errors import ConfigError
from hybridmoe.planning.price import price_of


def test_a_price_by_hand() -> None:
    price = price_of(
        36.0, watts=500, price_kwh=0.4, hardware_price=8766, lifetime_years=2, utilisation=0.5
    )
    assert price.kwh == pytest.approx(5)  # 1000 x 36 s x 500 W
    assert price.energy == pytest.approx(2)
    assert price.hardware == pytest.approx(8766 * 10 / (2 * 8766 * 0.5))  # 10 of 17532 hours
    assert price.total == price.energy + price.hardware


@pytest.mark.parametrize(
    ("name", "value"),
    [("watts", -1.0), ("price_kwh", float("nan")), ("hardware_price", float("inf")),
     ("lifetime_years", 0.0), ("utilisation", 1.5)],
)  # fmt: skip
def test_prices_that_cannot_be_are_refused(name: str, value: float) -> None:
    given_numbers = {"watts": 1.0, "price_kwh": 1.0, "hardware_price": 1.0, "lifetime_years": 1.0}
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} "):
        price_of(1.0, **{**given_numbers, name: value})
