"""Answers made from a right one: wrong ones by a small change, and the same one in other notation.

Many changes change nothing (`-0`, a fraction 1/1 upside down): ask `latex_values.differs` before believing one.
"""

import re
from collections.abc import Callable, Iterator
from random import Random

from latex_values import THOUSANDS, split


def perturbed(gold: str, others: list[str], random: Random) -> Iterator[tuple[str, str]]:
    """(kind of change, changed answer) for every kind that this answer has a place for; one draw of each."""
    for kind, change in _CHANGES.items():
        found = change(gold, random)
        if found is not None and found != gold:
            yield kind, found
    yield "another problem's", random.choice(others)


def _digit(gold: str, random: Random) -> str | None:
    places = [found.start() for found in re.finditer("[0-9]", gold)]
    if not places:
        return None
    at = random.choice(places)
    return gold[:at] + random.choice([d for d in "123456789" if d != gold[at]]) + gold[at + 1 :]


def _sign(gold: str, random: Random) -> str | None:
    places = [found.start() for found in re.finditer(r"[-+](?![a-z])", gold)]
    if places and (gold[0] == "-" or random.random() < 0.5):
        at = random.choice(places)
        return gold[:at] + ("+" if gold[at] == "-" else "-") + gold[at + 1 :]
    return None if gold[0] in "-([{" or "=" in gold or "," in gold or "text" in gold else f"-{gold}"


def _swapped(gold: str, _: Random) -> str | None:
    latex = re.sub(r"\\([dt]?)frac\{([^{}]*)\}\{([^{}]*)\}", r"\\\1frac{\3}{\2}", gold, count=1)
    return re.sub(r"([0-9]+) */ *([0-9]+)", r"\2/\1", gold, count=1) if latex == gold else latex


def _off_by_one(gold: str, random: Random) -> str | None:
    numbers = list(re.finditer(r"(?<![0-9.,!])[0-9]+(?![0-9.,])", gold))
    if not numbers:
        return None
    found = random.choice(numbers)
    return gold[: found.start()] + str(int(found[0]) + random.choice((-1, 1))) + gold[found.end() :]


def _ten_times(gold: str, random: Random) -> str | None:
    if found := re.fullmatch(r"(-?[0-9.]+)e(-?[0-9]+)", gold):
        return f"{found[1]}e{int(found[2]) + random.choice((-1, 1))}"
    if re.fullmatch(r"-?[0-9]*\.[0-9]{2,}", gold):
        whole, _, rest = gold.partition(".")
        return f"{whole}{rest[0]}.{rest[1:]}"
    return f"{gold}0" if re.fullmatch(r"-?[1-9][0-9]*", gold) else None


def _listed(gold: str) -> tuple[str, list[str], str] | None:
    """Bracket, members, bracket of a list of two or more."""
    inside = re.fullmatch(r"(\\left *[(\[]|\\?[(\[{]|)(.*?)(\\right *[)\]]|\\?[)\]}]|)", gold, re.DOTALL)
    if inside is None or THOUSANDS.search(gold):
        return None
    whole = split(gold)
    if len(whole) > 1:
        return "", whole, ""
    members = split(inside[2])
    return (inside[1], members, inside[3]) if len(members) > 1 else None


def _dropped(gold: str, random: Random) -> str | None:
    if (parts := _listed(gold)) is None:
        return None
    opening, members, closing = parts
    members.pop(random.randrange(len(members)))
    return opening + ",".join(members) + closing


def _added(gold: str, random: Random) -> str | None:
    if (parts := _listed(gold)) is None:
        return f"{gold}, {random.randint(2, 99)}" if re.fullmatch(r"-?[0-9]+", gold) else None
    opening, members, closing = parts
    return opening + ",".join([*members, str(random.randint(2, 99))]) + closing


def _reordered(gold: str, random: Random) -> str | None:
    parts = _listed(gold)
    if parts is None or parts[0].removeprefix(r"\left").strip() not in ("(", "["):
        return None
    opening, members, closing = parts
    at = random.randrange(len(members) - 1)
    members[at : at + 2] = members[at : at + 2][::-1]
    return opening + ",".join(members) + closing


def _bracket(gold: str, random: Random) -> str | None:
    parts = _listed(gold)
    if parts is None or "" in (parts[0], parts[2]) or parts[0][-1] not in "([":
        return None
    if {parts[0][-1], parts[2][-1]} == set("()") and r"\infty" not in gold:
        return None  # a point, perhaps, and no interval
    side = random.randrange(2) if r"\infty" not in gold else int(parts[1][0].strip().endswith(r"\infty"))
    ends = [parts[0], parts[2]]
    ends[side] = ends[side].translate(str.maketrans("([)]", "[(])"))
    return ends[0] + ",".join(parts[1]) + ends[1]


def _letter(gold: str, random: Random) -> str | None:
    places = [found.start() for found in re.finditer(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z{])", gold)]
    if not places:
        return None
    at = random.choice(places)
    return gold[:at] + ("u" if gold[at] != "u" else "v") + gold[at + 1 :]


def _word(gold: str, random: Random) -> str | None:
    found = re.fullmatch(r"(\\text *\{)(.*)(\})", gold)
    places = [k for k, letter in enumerate(found[2]) if letter.isalpha()] if found else []
    if not found or not places:
        return None
    at = random.choice(places)
    return found[1] + found[2][:at] + ("u" if found[2][at] != "u" else "v") + found[2][at + 1 :] + found[3]


def _squared(gold: str, _: Random) -> str | None:
    return f"({gold})^2" if re.fullmatch(r"-?[0-9.]+|\\frac\{[0-9]+\}\{[0-9]+\}", gold) else None


def _without_letter(gold: str, random: Random) -> str | None:
    """A factor that is a lone letter goes, as it does where a verifier takes it for a unit."""
    places = list(re.finditer(r"(?<=[0-9})]) ?(?<!\\)[a-zA-Z](?:_\{?[0-9]\}?)?(?![a-zA-Z^])", gold))
    found = random.choice(places) if places else None
    return None if found is None else gold[: found.start()] + gold[found.end() :]


def _other_base(gold: str, _: Random) -> str | None:
    found = re.fullmatch(r"([0-9]+)_(\{?)([0-9]+)(\}?)", gold)
    return f"{found[1]}_{found[2]}{int(found[3]) + 1}{found[4]}" if found else None


def _last_digit(gold: str, random: Random) -> str | None:
    """The last digit of a decimal, which a verifier that rounds does not see."""
    if not re.fullmatch(r"-?[0-9]*\.[0-9]+", gold):
        return None
    return gold[:-1] + random.choice([d for d in "123456789" if d != gold[-1]])


_CHANGES: dict[str, Callable[[str, Random], str | None]] = {
    "digit": _digit,
    "sign": _sign,
    "fraction upside down": _swapped,
    "off by one": _off_by_one,
    "ten times": _ten_times,
    "member dropped": _dropped,
    "member added": _added,
    "order of a point": _reordered,
    "end of an interval": _bracket,
    "variable": _letter,
    "word": _word,
    "squared": _squared,
    "letter dropped": _without_letter,
    "another base": _other_base,
    "last digit": _last_digit,
}


def restated(gold: str) -> Iterator[tuple[str, str]]:
    """(kind, the same answer in other notation), where this answer has a place for it."""
    if (text := gold.replace(r"\frac", r"\dfrac")) != gold:
        yield "dfrac", text
    if found := re.fullmatch(r"(-?)\\frac\{([0-9]+)\}\{([0-9]+)\}", gold):
        yield "slash", f"{found[1]}{found[2]}/{found[3]}"
    if found := re.fullmatch(r"(-?[0-9]+)\.?/([0-9]+)", gold):
        yield "frac", rf"\frac{{{found[1]}}}{{{found[2]}}}"
    if found := re.fullmatch(r"(-?[0-9.]+)e(-?[0-9]+)", gold):
        yield "power of ten", rf"{found[1]} \times 10^{{{found[2]}}}"
        yield "cdot", rf"{found[1]}\cdot 10^{{{found[2]}}}"
    if re.fullmatch(r"-?[0-9]*\.[0-9]+", gold):
        yield "zeros after", f"{gold}00"
    if re.fullmatch(r"-?[0-9]+", gold):
        yield "zero after", f"{gold}.0"
        yield "thousands", f"{int(gold):,}"
    if found := re.fullmatch(r"[a-zA-Z](?:\([a-z]\))? ?= ?([^=,$]+)", gold):
        yield "right side", found[1]
    if "," in gold and re.fullmatch(r"-?[0-9]+(?: ?, ?-?[0-9]+)+", gold) and not THOUSANDS.search(gold):
        yield "other order", ", ".join(reversed(gold.split(",")))
        yield "as a set", rf"\{{{gold}\}}"
    if r"\$" not in gold:
        yield "dollars", f"${gold.replace('$', '')}$"
    spaced = re.sub(r"(?<=[0-9}])([-+])(?=[0-9a-z])", r" \1 ", gold)
    yield "spaces", f" {spaced} "
    if gold.startswith("(") and gold.endswith(")") and len(split(gold)) == 1:
        yield "left and right", rf"\left{gold[:-1]}\right)"
