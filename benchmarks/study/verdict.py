"""From the results of all seeds of one adversary to one row: its pay, its harm, and whether it is beaten."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.study import bounds
from benchmarks.study.bounds import Interval
from benchmarks.study.run import RULES, SPAN
from templar_jax.simulate.pay import median

LATE = slice(20 // SPAN, 40 // SPAN)  # spans over which pay is compared
MOST_WITHOUT_WORK = 0.5  # of the median honest peer's pay
MOST_PER_COMPUTE = 1.05  # times the median honest peer's
SAMPLES = 64.0  # 1 / variance of the gap d of one window, 64 sequences a side
TELL = 2.0 * statistics.NormalDist().inv_cdf(0.95)  # standard errors between honest and not: 5 % of either error
HARM = 0.02
BEATEN, NARROW, NOT = "beaten", "beaten on average", "not beaten"

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One adversary, all seeds."""

    name: str
    letter: Literal["a", "b", "c"]
    does: str
    seeds: int
    one_history: bool
    accepted: float  # part of the windows, of its uids
    work: float  # inner steps, in those of as many honest peers
    weight: dict[str, tuple[float, float]]  # rules -> (mean, upper bound), times the median honest peer's weight
    per_compute: dict[str, Interval | None]  # rules -> times the median honest peer's; None: it runs no step
    tell: float  # windows of evidence needed
    harm: Interval | None  # loss over the honest peers' alone, less 1
    empty_windows: int
    alarms: dict[str, int]
    verdicts: dict[str, str]  # by rules; for the harm under "harm"


def honest_of(result: Result) -> list[Mapping[str, Any]]:
    return [peer for peer in result["peers"] if peer["role"] == "honest"]


def adversaries_of(result: Result) -> list[Mapping[str, Any]]:
    return [peer for peer in result["peers"] if peer["role"] != "honest"]


def late_pay(peer: Mapping[str, Any], rules: str) -> float:
    return sum(peer["pay"][rules][LATE])


def weights(result: Result, rules: str) -> list[float]:
    """Of each adversary, times the median honest peer's; infinity where that one earns nothing and this one does."""
    usual = median(late_pay(peer, rules) for peer in honest_of(result))
    return [_over(late_pay(peer, rules), usual) for peer in adversaries_of(result)]


def _over(pay: float, usual: float) -> float:
    return pay / usual if usual else math.inf if pay else 0.0


def per_compute(result: Result, rules: str) -> float | None:
    """Pay per step of the adversaries together, times the median honest peer's."""
    steps = sum(sum(peer["steps"][LATE]) for peer in adversaries_of(result))
    usual = median(
        late_pay(peer, rules) / sum(peer["steps"][LATE]) for peer in honest_of(result) if sum(peer["steps"][LATE])
    )
    return _over(sum(late_pay(peer, rules) for peer in adversaries_of(result)) / steps, usual) if steps else None


def windows_to_tell(results: Sequence[Result]) -> float:
    """Windows of evidence until the pooled gap of one adversary is TELL standard errors below an honest peer's.

    Gaps of a window are means over seeds; beyond the last window its last twenty go on. Infinity: never.
    """
    total, terms = 0.0, []
    for number in range(min(len(result["gaps"]["honest"]) for result in results)):
        pairs = [(r["gaps"]["honest"][number], r["gaps"]["adversary"][number]) for r in results]
        known = [honest - other for honest, other in pairs if honest is not None and other is not None]
        terms.append(SAMPLES * max(0.0, statistics.fmean(known)) ** 2 if known else 0.0)
        total += terms[-1]
        if total >= TELL * TELL:
            return number + 1
    rate = statistics.fmean(terms[-20:]) if terms else 0.0
    return len(terms) + (TELL * TELL - total) / rate if rate > 1e-3 else math.inf


def harm(results: Sequence[Result], alone: Mapping[int, Result]) -> list[float]:
    """Final held-out loss over that of the honest peers alone with the same seed, less 1."""
    pairs = [(result["heldout"], alone.get(result["job"]["seed"], {}).get("heldout")) for result in results]
    return [loss / base - 1.0 for loss, base in pairs if loss is not None and base]


def harm_limit(honest: Sequence[Result]) -> float:
    """The larger of 2 % and two standard deviations of the honest runs' final loss."""
    losses = [result["heldout"] for result in honest]
    return max(HARM, 2.0 * statistics.stdev(losses) / statistics.fmean(losses)) if len(losses) > 1 else HARM


def row(name: str, letter: Any, does: str, results: Sequence[Result], alone: Mapping[int, Result], limit: float) -> Row:
    """Everything about one adversary. `alone`: the results without adversaries, by seed."""
    both = [(result, peer) for result in results for peer in adversaries_of(result)]
    flat = {rules: [w for result in results for w in weights(result, rules)] for rules in RULES}
    weight = {rules: (statistics.fmean(of), bounds.upper(of)) if of else (0.0, 0.0) for rules, of in flat.items()}
    paid = {rules: _interval([per_compute(result, rules) for result in results]) for rules in RULES}
    worse = harm(results, alone)
    honest_steps = statistics.fmean(sum(peer["steps"]) for result in results for peer in honest_of(result))
    found = Row(
        name=name,
        letter=letter,
        does=does,
        seeds=len(results),
        one_history=all(result["state_roots_equal"] for result in results),
        accepted=statistics.fmean(peer["accepted"] / result["windows"] for result, peer in both) if both else 0.0,
        work=statistics.fmean(sum(peer["steps"]) for _, peer in both) / honest_steps if both else 0.0,
        weight=weight,
        per_compute=paid,
        tell=windows_to_tell(results),
        harm=bounds.interval(worse) if worse else None,
        empty_windows=sum(result["empty_windows"] for result in results),
        alarms=_total(result["alarms"] for result in results),
        verdicts={},
    )
    verdicts = {rules: _of_pay(found, rules) for rules in RULES}
    verdicts["harm"] = "" if found.harm is None else (BEATEN if found.harm.mean <= limit else NOT)
    return Row(**{**vars(found), "verdicts": verdicts})


def _of_pay(found: Row, rules: str) -> str:
    if found.letter == "c":
        return BEATEN if found.one_history else NOT
    if found.letter == "a":
        mean, upper = found.weight[rules]
        return BEATEN if upper <= MOST_WITHOUT_WORK else NARROW if mean <= MOST_WITHOUT_WORK else NOT
    interval = found.per_compute[rules]
    if interval is None:
        return BEATEN if found.weight[rules][0] == 0.0 else NOT
    return BEATEN if interval.high <= MOST_PER_COMPUTE else NARROW if interval.mean <= MOST_PER_COMPUTE else NOT


def _interval(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return bounds.interval(known) if known else None


def _total(counts: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in counts:
        for kind, number in each.items():
            found[kind] = found.get(kind, 0) + number
    return dict(sorted(found.items()))
