"""What tokens cost, and where the figure is from. A price that nobody knows is None, never 0."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from genai_prices import Usage, calc_price

from overnight.job.job import Job

_MILLION = 1_000_000


@dataclass(frozen=True)
class Rates:
    """USD per token of a batch."""

    input: float
    output: float
    cached: float
    """For input tokens that the provider had cached."""
    source: str
    """Where the rates are from, for people."""
    real_time: float | None = None
    """How many times as much the same tokens cost in real time; None where it is not known."""

    def cost(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """USD for some tokens; cached ones are among the input."""
        return (input_tokens - cached_tokens) * self.input + cached_tokens * self.cached + output_tokens * self.output


def job_rates(job: Job, model: str | None = None) -> Rates | None:
    """The rates that a job is billed at: its own, else the price list's; None where they are unknown.

    Args:
        job: whose provider counts.
        model: another model than the job's: raw bodies name their own, and earlier runs may have had another.
    """
    model = model or job.model
    if (given := job.provider.prices) is not None:
        source = "provider.prices of the job"
        return Rates(given.input / _MILLION, given.output / _MILLION, given.input / _MILLION, source)
    profile = job.profile
    if profile.name == "local":
        return Rates(0.0, 0.0, 0.0, "the embedded model runs on this machine")
    if profile.price_provider is None or model is None:
        return None
    return listed_rates(model, profile.price_provider, profile.discount)


def listed_rates(model: str, provider: str, discount: float | None) -> Rates | None:
    """Rates from genai-prices: its batch price, else its standard price less the profile's discount."""
    standard = _per_million(model, provider, batch=False)
    if standard is None:
        return None
    if _has_batch_price(model, provider):
        batch = _per_million(model, provider, batch=True) or standard
        share = float(batch[1] / standard[1]) if standard[1] else float(batch[0] / standard[0])
        return _rates(batch, "genai-prices, batch price", 1 / share if share else None)
    if discount is None:
        return _rates(standard, "genai-prices, standard price: no batch price is known", None)
    factor = Decimal(str(1 - discount))
    reduced = tuple(price * factor for price in standard)
    return _rates(reduced, f"genai-prices, standard price less {discount:.0%}", 1 / (1 - discount))


def _rates(prices: tuple[Decimal, ...], source: str, real_time: float | None) -> Rates:
    given, made, cached = (float(price) / _MILLION for price in prices)
    return Rates(given, made, cached, source, real_time)


def _per_million(model: str, provider: str, *, batch: bool) -> tuple[Decimal, ...] | None:
    """USD for a million tokens of input, output, and cached input."""
    context = {"processing": "batch"} if batch else None
    usages = (
        Usage(input_tokens=_MILLION),
        Usage(output_tokens=_MILLION),
        Usage(input_tokens=_MILLION, cache_read_tokens=_MILLION),
    )
    try:
        return tuple(
            calc_price(usage, model_ref=model, provider_id=provider, price_context=context).total_price
            for usage in usages
        )
    except LookupError:
        return None


def _has_batch_price(model: str, provider: str) -> bool:
    # genai-prices gives the standard price, without a word, for a model that has no batch variant.
    found = calc_price(Usage(input_tokens=1), model_ref=model, provider_id=provider).model
    return any(variant.when.get("processing") == "batch" for variant in found.price_variants or [])
