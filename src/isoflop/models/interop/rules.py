"""A layout is a list of rules that turn each of our names into theirs; reading and writing walk the same list.

Where they keep query, key and value apart, a rule gives three names, whose rows we keep in one matrix.
"""

from __future__ import annotations

import re

from isoflop.errors import ModelError

Rules = list[tuple[str, tuple[str, ...]]]


def rules(text: str) -> Rules:
    """Lines of `pattern -> name [+ name …]`, first match wins.

    In a pattern, # stands for a number and * for the rest; in a name, {0} and {1} are the numbers, {+} is the first of
    them plus one, and {*} the rest.
    """
    found = []
    for line in text.strip().splitlines():
        pattern, names = line.split("->")
        regex = re.escape(pattern.strip()).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")
        found.append((regex, tuple(name.strip() for name in names.split(" + "))))
    return found


def translate(name: str, rules: Rules) -> tuple[str, ...]:
    """Their name, or names, for one of ours; ModelError where no rule fits."""
    for pattern, templates in rules:
        match = re.fullmatch(pattern, name)
        if match:
            numbers = [group for group in match.groups() if group.isdigit()]
            rest = next((group for group in match.groups() if not group.isdigit()), "")
            following = str(int(numbers[0]) + 1) if numbers else ""
            return tuple(
                template.replace("{*}", rest).replace("{+}", following).format(*numbers) for template in templates
            )
    raise ModelError(f"this layout has no name for {name}")
