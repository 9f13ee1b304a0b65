"""Price of conversations, from speed, power and the price of the hardware."""

from dataclasses import dataclass

from hybridmoe.errors import ConfigError

__all__ = ["Price", "price_of"]

_YEAR_S = 365.25 * 86400


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a thousand conversations, with the figures that it is summed from."""

    seconds: float  # one conversation, alone on the machine
    kwh: float
    energy: float  # in the currency of the prices given
    hardware: float

    @property
    def total(self) -> float:
        return self.energy + self.hardware


def price_of(
    conversation_s: float,
    *,
    watts: float,
    price_kwh: float,
    hardware_price: float,
    lifetime_years: float,
    utilisation: float = 1.0,
) -> Price:
    """Price a thousand conversations, one after the other.

    utilisation: share of its life in which the machine works; its price is borne by that share.
    Errors: ConfigError for a number that cannot be.
    """
    for name, value in (
        ("watts", watts),
        ("price-kwh", price_kwh),
        ("hardware-price", hardware_price),
    ):
        if not 0 <= value < float("inf"):
            raise ConfigError(f"--{name} {value:g}: expected a number from 0 on")
    if not 0 < lifetime_years <= 100:
        raise ConfigError(f"--lifetime-years {lifetime_years:g}: expected above 0, at most 100")
    if not 0 < utilisation <= 1:
        raise ConfigError(f"--utilisation {utilisation:g}: expected above 0, at most 1")
    seconds = 1000 * conversation_s
    kwh = watts * seconds / 3.6e6
    hardware = hardware_price * seconds / (lifetime_years * _YEAR_S * utilisation)
    return Price(conversation_s, kwh, kwh * price_kwh, hardware)
