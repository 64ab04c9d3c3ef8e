"""What a call costs: the published prices, tiers, long requests, and prices files that cannot be used."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from app.usage import pictures
from app.usage.kinds import Basis, Kind, Quantity
from app.usage.money import to_usd
from app.usage.prices import SHIPPED, Prices, PricesError, load_prices

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def prices() -> Prices:
    return load_prices()


def nano(
    prices: Prices, model: str, kind: Kind, quantity: int, *, tier: str | None = None, at: datetime = NOW
) -> int | None:
    return prices.price([Quantity(kind, model, quantity)], at=at, tier=tier)[0].cost_nano


@pytest.mark.parametrize(
    ("model", "kind", "usd_per_million"),
    [
        ("gpt-6.1-sol", Kind.INPUT, "2.00"),
        ("gpt-6.1-sol", Kind.CACHED_INPUT, "0.10"),
        ("gpt-6-luna", Kind.CACHE_WRITE, "0.125"),
        ("gpt-6-astra", Kind.CACHE_WRITE_12H, "25"),
        ("gpt-5-2025-08-07", Kind.OUTPUT, "10"),
        ("gpt-4o-mini", Kind.CACHED_INPUT, "0.075"),
        ("gpt-image-2.6-sunburst", Kind.IMAGE_OUTPUT, "30"),
        ("gpt-image-2.5-flash", Kind.IMAGE_TEXT_CACHED, "1.25"),
        ("gpt-image-1.5", Kind.IMAGE_OUTPUT, "32"),
        ("gpt-5-nano", Kind.SVG_OUTPUT, "0.40"),
    ],
)
def test_a_million_tokens_cost_what_is_published(prices: Prices, model: str, kind: Kind, usd_per_million: str) -> None:
    # A seventh of it: the whole would be a long request.
    assert nano(prices, model, kind, 100_000) == Decimal(usd_per_million) * 10**9 / 10


def test_searches_and_sessions_cost_the_same_whatever_the_model_and_the_tier(prices: Prices) -> None:
    for model, tier in (("gpt-6.1-sol", "flex"), ("nobody-knows", None)):
        assert nano(prices, model, Kind.WEB_SEARCHES, 3, tier=tier) == 30_000_000
        assert nano(prices, model, Kind.CODE_INTERPRETER_SESSIONS, 2, tier=tier) == 60_000_000


@pytest.mark.parametrize(
    "name", ["gpt-6", "gpt-6.1", "gpt-6.1-sol-pro", "gpt-5-mini", "gpt-5-codex", "gpt-image-3", "gpt-4"]
)
def test_another_name_finds_no_price(prices: Prices, name: str) -> None:
    assert not any(prices.has(kind, name, NOW) for kind in (Kind.OUTPUT, Kind.IMAGE_OUTPUT))
    (found,) = prices.price([Quantity(Kind.INPUT, name, 10)], at=NOW)
    assert (found.cost_nano, found.nano_each, found.basis) == (None, None, Basis.UNPRICED)


@pytest.mark.parametrize(
    ("model", "tier", "factor"),
    [
        ("gpt-6.1-sol", "default", "1"),
        ("gpt-6.1-sol", "auto", "1"),
        ("gpt-6.1-sol", None, "1"),
        ("gpt-6.1-sol", "flex", "0.5"),
        ("gpt-6.1-sol", "priority", "2"),
        ("gpt-6.1-sol", "fast", "2"),
        ("gpt-6.1-sol", "ultrafast", "6"),
        ("gpt-4.1", "priority", "1.75"),
        ("gpt-4o", "priority", "1.7"),
        ("gpt-6-sol", "ultrafast", None),
        ("gpt-6.1-sol", "scale", None),
        ("gpt-6.1-sol", "new-tier", None),
    ],
)
def test_the_service_tier_multiplies(prices: Prices, model: str, tier: str | None, factor: str | None) -> None:
    plain = nano(prices, model, Kind.OUTPUT, 1000)
    assert plain is not None
    found = nano(prices, model, Kind.OUTPUT, 1000, tier=tier)
    assert found == (None if factor is None else plain * Decimal(factor))


def test_a_request_with_more_than_272_000_input_tokens_is_dearer_as_a_whole(prices: Prices) -> None:
    def of(plain: int) -> list[int | None]:
        quantities = [
            Quantity(Kind.INPUT, "gpt-6.1-sol", plain),
            Quantity(Kind.CACHED_INPUT, "gpt-6.1-sol", 72_000),
            Quantity(Kind.OUTPUT, "gpt-6.1-sol", 100),
            Quantity(Kind.IMAGE_OUTPUT, "gpt-image-2", 100),
        ]
        return [one.cost_nano for one in prices.price(quantities, at=NOW, tier="flex")]

    assert of(200_000) == [200_000 * 1_000, 72_000 * 50, 100 * 5_000, 100 * 30_000]
    assert of(200_001) == [200_001 * 2_000, 72_000 * 100, 100 * 7_500, 100 * 30_000]


def test_half_a_nano_dollar_is_rounded_in_an_entry_and_nowhere_before(prices: Prices) -> None:
    # 0.005 USD a million is 5 nano-dollars each, and half of it on flex.
    assert [nano(prices, "gpt-5-nano", Kind.CACHED_INPUT, count, tier="flex") for count in (1, 2, 3, 1001)] == [
        2,
        5,
        8,
        2502,
    ]


def test_the_price_of_the_day_holds(tmp_path: Path) -> None:
    shipped = SHIPPED.read_text()
    start = shipped.index('[[text]]\nmodels = ["gpt-6.1-sol"]')
    row = shipped[start : shipped.index("[[text]]", start + 1)]
    later = row.replace("2026-11-01", "2026-12-01").replace("output = 10.00", "output = 7.00")
    (tmp_path / "prices.toml").write_text(shipped + "\n" + later)
    prices = load_prices(tmp_path / "prices.toml")
    midnight = datetime(2026, 12, 1, tzinfo=UTC)
    before = midnight - timedelta(microseconds=1)
    assert nano(prices, "gpt-6.1-sol", Kind.OUTPUT, 1, at=before) == 10_000
    assert nano(prices, "gpt-6.1-sol", Kind.OUTPUT, 1, at=midnight) == 7_000
    assert nano(prices, "gpt-6.1-sol", Kind.OUTPUT, 1, at=datetime(2026, 10, 31, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("output = 10.00\n", "", "text[0].output: this price is missing"),
        ("output = 10.00\n", "output = -1\n", "text[0].output: input should be greater than or equal to 0"),
        ("output = 10.00\n", "output = nan\n", "text[0].output: input should be a finite number"),
        ("output = 10.00\n", "output = 1e400\n", "text[0].output: input should be less than or equal to 1000000"),
        ("output = 10.00\n", 'output = "dear"\n', "text[0].output: input should be a valid decimal"),
        ("output = 10.00\n", "output = 10.00\nsurprise = 10.00\n", "text[0].surprise: there is no such price"),
        ("since = 2026-11-01\n", "", "text[0].since: this price is missing"),
        ("[[text]]", "[[text", "is not TOML"),
        ("tiers = { flex = 0.5", "tiers = { flex = 0", "text[0].tiers.flex: input should be greater than 0"),
    ],
)
def test_a_prices_file_with_a_hole_is_refused_in_one_sentence(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(SHIPPED.read_text().replace(old, new, 1))
    with pytest.raises(PricesError) as refused:
        load_prices(path)
    assert str(refused.value).startswith(f"PRICES_FILE: {path}")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_price_names_its_source(prices: Prices) -> None:
    assert all(row.source for row in (*prices.text, *prices.image, *prices.tools))


def test_a_prices_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(PricesError, match="cannot be read: No such file"):
        load_prices(tmp_path / "prices.toml")


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0"), (1, "0.000000001"), (2_500_000_000, "2.5"), (10**9, "1"), (-5, "-0.000000005"), (None, None)],
)
def test_money_is_a_decimal_string_without_a_float_on_the_way(amount: int | None, shown: str | None) -> None:
    assert to_usd(amount) == shown


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("gpt-image-2", "1024x1024", (196, 1756, 7024)),
        ("gpt-image-2", "1536x1024", (158, 1372, 5488)),
        ("gpt-image-2", "1024x1536", (158, 1372, 5488)),
        ("gpt-image-1.5", "1024x1024", (272, 1056, 4160)),
        ("gpt-image-1.5", "1024x1536", (408, 1584, 6240)),
        ("gpt-image-1.5", "1536x1024", (400, 1568, 6208)),
    ],
)
def test_a_picture_takes_as_many_tokens_as_is_published(model: str, size: str, tokens: tuple[int, int, int]) -> None:
    found = [pictures.output_tokens(model, quality=quality, size=size) for quality in ("low", "medium", "high")]
    assert tuple(found) == tokens
    assert pictures.is_published(model, quality="low", size=size)


def test_what_is_not_published_is_assumed() -> None:
    """Measured: 2.6 takes 4.2 times the tokens of 2.5 at low and medium; what is not said counts as the dearest."""
    newer, older = "gpt-image-2.6-sunburst", "gpt-image-2.5-sunburst"
    for quality, percent in (("low", 420), ("medium", 420), ("high", 105), ("max", 105)):
        known = pictures.output_tokens(older, quality=quality, size="1024x1024")
        assert pictures.output_tokens(newer, quality=quality, size="1024x1024") == -(-known * percent // 100)
    assert not pictures.is_published(newer, quality="low", size="1024x1024")
    assert not pictures.is_published(older, quality="auto", size="1024x1024")
    dearest = pictures.output_tokens(newer, quality="max", size="1024x1024")
    assert pictures.output_tokens(newer, quality=None, size=None) == dearest
    assert pictures.output_tokens("nobody-knows", quality="auto", size="auto") == dearest
    assert pictures.output_tokens(older, quality="low", size="1024x1024", frames=3) == 3 * 196


@pytest.mark.parametrize(
    ("size", "tokens"), [((128, 128), 64), ((1024, 1024), 1024), ((4096, 4096), 1536), ((33, 3200), 200)]
)
def test_a_given_picture_takes_between_64_and_1_536_tokens(size: tuple[int, int], tokens: int) -> None:
    assert pictures.input_tokens(*size) == tokens
