"""Amounts of money: whole nano-dollars (10^-9 USD) everywhere, and no float on the way."""

from decimal import ROUND_CEILING, Decimal

NANO = 10**9


def to_usd(nano: int | None) -> str | None:
    """A decimal string, as short as it is exact."""
    if nano is None:
        return None
    whole, rest = divmod(abs(nano), NANO)
    sign = "-" if nano < 0 else ""
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")


def to_nano(usd: Decimal) -> int:
    """Rounded up."""
    return int((usd * NANO).to_integral_value(ROUND_CEILING))
