"""Every key explains itself."""

import re
import tomllib

import pytest

from isoflop.config import Key, RunConfig, StudyConfig, dotted, flatten, parse, reference

RUN = {"model": {"name": "m"}, "steps": 10}
STUDY = {"study": {"name": "s", "budgets": [1.0, 2.0, 3.0], "target_budget": 3.0}, "families": {"NAME": {}}}


@pytest.mark.parametrize(("kind", "least"), [(RunConfig, RUN), (StudyConfig, STUDY)])
def test_the_reference_has_every_key_with_its_meaning_and_default(
    kind: type[RunConfig] | type[StudyConfig], least: dict[str, object]
) -> None:
    known = {key.name: key for key in reference(kind)}
    values = {dotted(path): value for path, value in flatten(parse(least, kind)) if path[-1] != "groups"}
    others = {name for name, key in known.items() if re.match(r'With "(?!supervised)', key.meaning)}
    others |= {name for name in known if ".groups.NAME." in name}  # there are none unless somebody names one
    optional = tuple(f"{name}." for name, key in known.items() if key.allowed == "table | none")
    others |= {name for name in known if name.startswith(optional)}
    assert set(known) - others == set(values)
    for name, key in known.items():
        assert key.meaning.endswith((".", ").")), name
        assert key.allowed, name
        if key.default not in ("required", "none") and name not in others:
            value = tomllib.loads(f"value = {key.default}")["value"]
            assert (tuple(value) if isinstance(value, list) else value) == values[name]


def test_what_is_allowed_is_told_in_words() -> None:
    keys = {key.name: key for key in reference(StudyConfig)}
    assert keys["families.NAME.sizes"] == Key(
        "families.NAME.sizes",
        "list of text | whole number",
        "4",
        "Presets, small to large, or the number of presets to choose from the family's ladder. Of several, neighbours "
        "on\nthe ladder may be the answer; one that is named is the only one.",
    )
    assert keys["schedule.name"].allowed == '"constant" | "cosine" | "rsqrt" | "steps" | "poly"'
    assert keys["study.name"].default == "required"
    scalar = "true | false | whole number | number | text"
    assert keys["families.NAME.model"].allowed == f"table of {scalar} | list of {scalar}"
    assert keys["study.output"].allowed == "path | none"
