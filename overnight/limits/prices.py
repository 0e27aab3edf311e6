"""What tokens cost, and where the figure is from. A price that nobody knows is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from genai_prices import Usage, calc_price
from genai_prices.types import TieredPrices

from overnight.job.job import Job, Prices
from overnight.job.profiles import Profile

_MILLION = 1_000_000
_WRITING = (1.25, 2.0)
"""Of the input's price: writing to a cache for minutes, and for an hour (docs.claude.com, prompt caching, 2026-11)."""
Amounts = npt.NDArray[np.float64]


class Written(NamedTuple):
    """Tokens that were written to a cache: numbers, or arrays of them by request."""

    for_minutes: Any
    for_hour: Any


NOTHING = Written(0, 0)


class Tier(NamedTuple):
    """USD per token of the requests with more than so many input tokens: long contexts cost more, all of them."""

    above: int
    input: float
    output: float
    cached: float
    """For input tokens that the provider had cached."""
    written: float | None = None
    """For input tokens that are written to a cache for minutes; None: as any other."""
    written_for_hour: float | None = None
    """The same of a cache for an hour."""

    def times(self, factor: float) -> Tier:
        """The same with other prices."""
        prices = (None if price is None else price * factor for price in self[1:])
        return Tier(self.above, *prices)  # type: ignore[arg-type]  # what is not None stays so


@dataclass(frozen=True)
class Rates:
    """USD per token of a batch."""

    tiers: tuple[Tier, ...]
    """By `above`, from 0."""
    source: str
    """Where the rates are from, for people."""
    real_time: float | None = None
    """How many times as much the same tokens cost in real time; None where it is not known."""
    listed: tuple[Tier, ...] | None = None
    """What they cost in real time, where a price list has that: not everything costs less in a batch."""

    @staticmethod
    def flat(tier: Tier, source: str, real_time: float | None = None) -> Rates:
        """Rates that are the same for requests of any length."""
        return Rates((tier,), source, real_time)

    @staticmethod
    def recorded(values: Mapping[str, Any]) -> Rates:
        """Rates as `as_record` keeps them with a batch."""
        tiers = tuple(Tier(*tier) for tier in values["tiers"])
        listed = tuple(Tier(*tier) for tier in values.get("listed") or ()) or None
        return Rates(tiers, values["source"], values["real_time"], listed)

    def as_record(self) -> dict[str, Any]:
        """The rates as JSON."""
        listed = [list(tier) for tier in self.listed] if self.listed else None
        return asdict(self) | {"tiers": [list(tier) for tier in self.tiers], "listed": listed}

    @property
    def in_real_time(self) -> Rates | None:
        """What the same tokens cost outside of a batch; None where it is not known."""
        if self.free:
            return self
        if (times := self.real_time) is None:
            return None
        tiers = self.listed or tuple(tier.times(times) for tier in self.tiers)
        return Rates(tiers, f"{self.source}, in real time", 1.0)

    @property
    def free(self) -> bool:
        """Whether nothing costs anything."""
        return not any(tier.input or tier.output for tier in self.tiers)

    def cost(
        self,
        input_tokens: float,
        output_tokens: float,
        cached_tokens: float = 0,
        written: Written = NOTHING,
        *,
        largest: float | None = None,
    ) -> float:
        """USD for some tokens; those read from a cache, and written to one, are among the input.

        Args:
            input_tokens: of all requests.
            output_tokens: of all requests.
            cached_tokens: of all requests.
            written: to a cache, of all requests.
            largest: input tokens of the largest request, which is the bound where there are several; None: it is one.
        """
        size = input_tokens if largest is None else largest
        tier = next(one for one in reversed(self.tiers) if one.above == 0 or size > one.above)
        found: float = _cost(tier, input_tokens, output_tokens, cached_tokens, written)
        return found

    def costs(self, given: Amounts, made: Amounts, cached: Amounts, written: Written = NOTHING) -> Amounts:
        """USD of single requests by their input and output tokens, those read from a cache and those written to one."""
        found = np.zeros(len(given))
        for tier in self.tiers:
            cost = _cost(tier, given, made, cached, written)
            found = np.where((given > tier.above) | (tier.above == 0), cost, found)
        return found


def _cost(tier: Tier, given: Any, made: Any, cached: Any, written: Written) -> Any:
    """USD at one tier's rates, of numbers or of arrays."""
    minutes, hour = written
    fresh = given - cached - minutes - hour
    dear = minutes * _or(tier.written, tier.input) + hour * _or(tier.written_for_hour, tier.input)
    return fresh * tier.input + cached * tier.cached + dear + made * tier.output


def _or(price: float | None, otherwise: float) -> float:
    return otherwise if price is None else price


def job_rates(job: Job, model: str | None = None) -> Rates | None:
    """The rates that a job is billed at now: its own, else the price list's; None where they are unknown.

    Args:
        job: whose provider counts.
        model: another model than the job's: raw bodies name their own, and earlier runs may have had another.
    """
    model = model or job.model
    if (given := job.provider.prices) is not None:
        times = None if job.profile.discount is None else 1 / (1 - job.profile.discount)
        return Rates.flat(_given_tier(given, job.profile), "provider.prices of the job", times)
    profile = job.profile
    if profile.name == "local":
        return Rates.flat(Tier(0, 0.0, 0.0, 0.0), "the embedded model runs on this machine")
    if profile.price_provider is None or model is None:
        return None
    return listed_rates(model, profile.price_provider, profile.discount)


def _given_tier(given: Prices, profile: Profile) -> Tier:
    """Prices by hand; what is cached is read at the price of the rest, and written at the provider's ratios."""
    input_, output = given.input / _MILLION, given.output / _MILLION
    minutes, hour = _WRITING if profile.caches_system else (None, None)
    return Tier(0, input_, output, input_, minutes and input_ * minutes, hour and input_ * hour)


def listed_rates(model: str, provider: str, discount: float | None) -> Rates | None:
    """Rates from genai-prices: its batch price, else its standard price less the profile's discount."""
    standard = _listed_tiers(model, provider, batch=False)
    if standard is None:
        return None
    if _has_batch_price(model, provider):
        tiers = _listed_tiers(model, provider, batch=True) or standard
        first, list_first = tiers[0], standard[0]
        share = first.output / list_first.output if list_first.output else first.input / (list_first.input or 1)
        return Rates(tiers, "genai-prices, batch price", 1 / share if share else None, standard)
    if discount is None:
        return Rates(standard, "genai-prices, standard price: no batch price is known")
    part = 1 - discount
    reduced = tuple(tier.times(part) for tier in standard)
    return Rates(reduced, f"genai-prices, standard price less {discount:.0%}", 1 / part, standard)


def _listed_tiers(model: str, provider: str, *, batch: bool) -> tuple[Tier, ...] | None:
    """A model's rates for requests of each length that has its own."""
    context = {"processing": "batch"} if batch else None
    try:
        found = calc_price(Usage(input_tokens=1), model_ref=model, provider_id=provider, price_context=context)
    except LookupError:
        return None
    price = found.model_price
    given, made, cached = price.input_mtok, price.output_mtok, price.cache_read_mtok
    minutes, hour = price.cache_write_mtok, price.cache_write_1h_mtok
    every = (given, made, cached, minutes, hour)
    starts = {0} | {tier.start for one in every if isinstance(one, TieredPrices) for tier in one.tiers}
    return tuple(
        Tier(start, _at(given, start), _at(made, start), _at(given if cached is None else cached, start),
             None if minutes is None else _at(minutes, start), None if hour is None else _at(hour, start))
        for start in sorted(starts)
    )  # fmt: skip


def _at(price: Decimal | TieredPrices | None, start: int) -> float:
    """USD per token of a price for requests with more input tokens than `start`."""
    if isinstance(price, TieredPrices):
        base = next((tier.price for tier in reversed(price.tiers) if tier.start <= start), price.base)
        return float(base) / _MILLION
    return float(price or 0) / _MILLION


def _has_batch_price(model: str, provider: str) -> bool:
    # genai-prices gives the standard price, without a word, for a model that has no batch variant.
    found = calc_price(Usage(input_tokens=1), model_ref=model, provider_id=provider).model
    return any(variant.when.get("processing") == "batch" for variant in found.price_variants or [])
