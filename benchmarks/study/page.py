"""docs/attacks.md and docs/attacks.png from the committed results."""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import effort_page, honest, picture, verdict
from benchmarks.study.bounds import Interval
from benchmarks.study.run import load
from benchmarks.study.verdict import NOT, Result, Row
from templar_jax.simulate import report
from templar_jax.simulate.zoo.table import ROLES

NOTES = "notes.toml"  # NAME = "the best idea why it is not beaten"

HEAD = """# What cheating earns

Made by `python scripts/bench.py attacks` from the files in `docs/attacks/`; do not edit it. Each row is a real
network of the nano configuration on virtual time: 12 peers of which 3 are adversaries (where a row's name says so,
another number), one validator, {windows} windows, real training, real compression, sealed objects, manifests and
evaluation. One simulation serves both sets of rules: `v213` are the reference's rules, `default` are this project's,
and both are applied to the same recorded evidence. Pay acts back on training in one place: the outer step leaves out
who earns under a quarter of the median incentive, which is that of the default rules. Rerun one:
`python scripts/simulate.py --config configs/nano.toml --peers 12 --windows 40 --attack NAME:3 --seed 1`.

![pay of every adversary under both sets of rules](attacks.png)

{summary}
"""


def write(out: Path) -> None:
    """Writes OUT.md and OUT.png beside the folder of results; nothing where there is no result."""
    results = read(out)
    if not results:
        return
    found, notes = rows(results), _notes(out / NOTES)
    text = page(results, found, notes)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    picture.draw(found, out.with_suffix(".png"))


def read(out: Path) -> dict[str, list[Result]]:
    """All results by name, ascending by seed."""
    found: dict[str, list[Result]] = {}
    for path in sorted(out.glob("*.json")):
        result = load(path)
        found.setdefault(result["job"]["name"], []).append(result)
    return {name: sorted(of, key=lambda result: result["job"]["seed"]) for name, of in found.items()}


def rows(results: Mapping[str, Sequence[Result]]) -> list[Row]:
    alone, full = (_by_seed(results.get(name, [])) for name in ("absent", "honest"))
    limit = verdict.harm_limit(results.get("absent", []))
    found = []
    for name, of in results.items():
        entry = ROLES.get(_role(of[0]))
        if entry is not None and not effort_page.is_of(of[0]) and _role(of[0]) != "absent":
            base = full if entry.acts == "validator" else alone if of[0]["job"]["attacks"][0][1] == 3 else {}
            found.append(verdict.row(name, entry.letter, entry.does, of, base, limit))
    order = list(ROLES)
    return sorted(found, key=lambda row: (row.letter, order.index(_role(results[row.name][0])), row.name))


def _by_seed(results: Sequence[Result]) -> dict[int, Result]:
    return {result["job"]["seed"]: result for result in results if result["windows"] >= 40}


def _role(result: Result) -> str:
    attacks = result["job"]["attacks"]
    return attacks[0][0] if attacks else "honest"


def _notes(path: Path) -> dict[str, str]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def page(results: Mapping[str, Sequence[Result]], found: Sequence[Row], notes: Mapping[str, str]) -> str:
    windows = max(result["windows"] for of in results.values() for result in of)
    by_letter = {letter: [row for row in found if row.letter == letter] for letter in "abc"}
    parts = [
        HEAD.format(windows=windows, summary=_summary(by_letter)),
        _class_a(by_letter["a"]),
        _class_b(by_letter["b"]),
        _class_c(by_letter["c"]),
        _not_beaten(found, notes),
        _harm(results),
        _honest(honest.facts(results)),
        effort_page.text(results),
        _method(results),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def _summary(by_letter: Mapping[str, Sequence[Row]]) -> str:
    lines = []
    for letter, what in (("a", "no work or invalid"), ("b", "partial work"), ("c", "validators and leaders")):
        of = by_letter[letter]
        if of:
            counts = {rules: sum(row.verdicts[rules] != NOT for row in of) for rules in ("v213", "default")}
            beaten = f"{counts['default']} of {len(of)} beaten under default, {counts['v213']} under v213"
            history = f"one history in {sum(row.one_history for row in of)} of {len(of)}"
            lines.append(f"- Class ({letter}), {what}: {history if letter == 'c' else beaten}.")
    harmful = [row.name for rows in by_letter.values() for row in rows if row.verdicts["harm"] == NOT]
    lines.append(f"- Harm beyond the limit: {', '.join(harmful) if harmful else 'none'}.")
    return "\n".join(lines)


def number(value: float, digits: int = 2) -> str:
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def span(interval: Interval | None, digits: int = 2) -> str:
    if interval is None:
        return "–"
    if math.isinf(interval.high):
        return number(interval.mean, digits)
    return f"{number(interval.mean, digits)} [{number(interval.low, digits)}, {number(interval.high, digits)}]"


def percent(interval: Interval | None) -> str:
    return "–" if interval is None else span(Interval(*(100.0 * value for value in interval)), 1)


def _class_a(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    text = """## (a) No work, or invalid

Weight over windows 20 to 40 relative to the median honest peer's: mean, and in brackets the upper 95 % bound over
seeds and uids. Beaten: the bound is at most 0.5. Harm: final held-out loss over that of the 9 honest peers alone
(same seeds, slots and pages), in percent.

"""
    lines = [
        [
            f"`{row.name}`", row.does, str(row.seeds), f"{row.accepted:.2f}",
            *(f"{number(row.weight[rules][0])} ({number(row.weight[rules][1])})" for rules in ("v213", "default")),
            row.verdicts["v213"], _strong(row.verdicts["default"]), percent(row.harm),
        ]
        for row in rows
    ]  # fmt: skip
    head = (
        "adversary", "what it does", "seeds", "accepted", "weight v213", "weight default",
        "v213", "default", "harm %",
    )  # fmt: skip
    return text + table(head, lines)


def _class_b(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    text = """## (b) Partial work

Pay per inner step really run, of the adversaries together, over the median honest peer's, windows 20 to 40: mean and
95 % interval over seeds. Beaten: the interval ends at or below 1.05; beaten on average: the mean does. Work: inner
steps of an honest peer's. To tell: windows of evidence after which an adversary's pooled gap d lies 3.3 standard errors
below an honest peer's (5 % of either error), from the gaps measured here; it says when a rule *can* know.

"""
    lines = [
        [
            f"`{row.name}`", row.does, str(row.seeds), f"{row.work:.2f}",
            *(span(row.per_compute[rules]) for rules in ("v213", "default")),
            "never" if math.isinf(row.tell) else f"{row.tell:.0f}",
            row.verdicts["v213"], _strong(row.verdicts["default"]), percent(row.harm),
        ]
        for row in rows
    ]  # fmt: skip
    head = (
        "adversary", "what it does", "seeds", "work", "pay per step v213", "default",
        "to tell", "v213", "default", "harm %",
    )  # fmt: skip
    return text + table(head, lines)


def _class_c(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    text = """## (c) Validators and leaders

Three validators where an adversary acts as one. One history: every node came to one state root in every window of
every seed. Empty windows: those without an outer step, over all seeds. Alarms: raised by any node, over all seeds.
Harm: over the loss of twelve honest peers and a validator, in percent.

"""
    lines = [
        [
            f"`{row.name}`", row.does, str(row.seeds), "yes" if row.one_history else "**no**", str(row.empty_windows),
            ", ".join(f"{kind} {hits}" for kind, hits in row.alarms.items()) or "none", percent(row.harm),
        ]
        for row in rows
    ]  # fmt: skip
    return text + table(
        ("adversary", "what it does", "seeds", "one history", "empty windows", "alarms", "harm %"), lines
    )


def _strong(word: str) -> str:
    return f"**{word}**" if word == NOT else word


def _not_beaten(rows: Sequence[Row], notes: Mapping[str, str]) -> str:
    failing = [row for row in rows if NOT in (row.verdicts["default"], row.verdicts["harm"])]
    if not failing:
        return ""
    lines = [f"- `{row.name}` ({_fails(row)}): {notes.get(row.name, 'not yet explained.')}" for row in failing]
    return "## Not beaten, and the best idea why\n\n" + "\n".join(lines) + "\n"


def _fails(row: Row) -> str:
    pay, harm = row.verdicts["default"] == NOT, row.verdicts["harm"] == NOT
    return ", ".join(["pay"] * pay + ["harm"] * harm)


def _harm(results: Mapping[str, Sequence[Result]]) -> str:
    alone, full = results.get("absent", []), results.get("honest", [])
    if not alone:
        return ""
    limit, losses = verdict.harm_limit(alone), [result["heldout"] for result in alone]
    text = f"""## Harm

Final held-out loss of 9 honest peers alone: {min(losses):.4f} to {max(losses):.4f} nats per token, {len(alone)} seeds.
The limit of harm is the larger of 2 % and two standard deviations of that: {100 * limit:.1f} %.
"""
    if full:
        gain = [-loss for loss in verdict.harm(full, {result["job"]["seed"]: result for result in alone})]
        if gain:
            text += f"Three more honest peers lower the loss by {100 * sum(gain) / len(gain):.1f} % on average.\n"
    return text


def _honest(known: Mapping[str, Any]) -> str:
    if not known["seeds"]:
        return ""
    lines = [
        "## Honest peers\n",
        f"Twelve honest peers, {known['seeds']} seeds, {known['peer_windows']} peer-windows.\n",
        f"- Broken rules: {known['violations']}.",
    ]
    rates = {kind: rate for kind, rate in known["findings"].items()} or {"of any kind": known["none"]}
    said = (
        f"{kind} {100 * rate.mean:.2f} % [{100 * rate.low:.2f}, {100 * rate.high:.2f}]" for kind, rate in rates.items()
    )
    lines.append(f"- Statistical findings, part of peer-windows with 95 % interval: {', '.join(said)}.")
    for rules in ("v213", "default"):
        of = known["evenness"][rules]
        if of:
            mean = sum(of) / len(of)
            lines.append(
                f"- Worst over median pay, 40 windows, {rules}: {min(of):.2f} to {max(of):.2f}, mean {mean:.2f}."
            )
    for rules in ("v213", "default"):
        if (moved := known["planted"][rules]) is not None:
            lines.append(
                f"- Three losers (noise) planted beside nine, {rules}: an honest peer's share of honest pay moves by "
                f"{100 * moved['moved']:.1f} % (SD; at most {100 * moved['worst']:.1f} %); honest shares differ "
                f"by {100 * moved['spread']:.1f} % anyway."
            )
    return "\n".join(lines) + "\n"


def _method(results: Mapping[str, Sequence[Result]]) -> str:
    every = [result for of in results.values() for result in of]
    seconds = sum(result["versions"]["cpu_seconds"] for result in every)
    code = report.count(result["versions"]["simulation"] for result in every)
    versions = ", ".join(f"{name} ({number})" for name, number in code.items())
    rules = sorted({result["versions"]["rules"] for result in every})
    return f"""## How this was made

{len(every)} simulations, {seconds / 3600:.1f} hours of one core; simulations of each version of the simulated code:
{versions}; rules {", ".join(rules)}.
An adversary that acts on its pay (whitewash, recycled-uid) saw that of the default rules. Between versions the loss of
the same seed differs by up to 0.2 %. Hotkeys that one owner registers one after the other are added up. Bounds over
seeds and uids treat uids of one seed as independent.
"""
