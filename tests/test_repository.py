"""The files that a forge and a citation manager read."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))

# The schema of the Citation File Format 1.2.0 (doi 10.5281/zenodo.5171937), as far as the file uses it.
REQUIRED = {"cff-version", "message", "title", "authors"}
KNOWN = REQUIRED | {
    *("abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url"),
    *("preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url"),
    "version",
}
PERSON = {"family-names", "given-names", "name-particle", "name-suffix", "alias", "affiliation", "email", "orcid"}
ENTITY = {"name", "address", "city", "country", "email", "orcid", "website", "date-start", "date-end", "location"}


def _check_authors(authors: list[dict[str, str]]) -> None:
    assert authors
    for author in authors:
        assert "name" in author or "family-names" in author
        assert set(author) <= (ENTITY if "name" in author else PERSON)


def test_the_citation_is_valid_and_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert set(citation) >= REQUIRED
    assert set(citation) <= KNOWN
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert re.match(r"https://", citation["repository-code"])
    assert len(citation["keywords"]) == len(set(citation["keywords"]))
    _check_authors(citation["authors"])
    for reference in citation["references"]:
        assert set(reference) >= {"type", "title", "authors"}
        _check_authors(reference["authors"])


@pytest.mark.parametrize("path", [form for form in FORMS if form.name != "config.yml"], ids=lambda path: path.name)
def test_issue_forms_are_what_forges_take(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(form) >= {"name", "description", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields
    assert len({field["id"] for field in fields}) == len(fields)
    for field in fields:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


def test_the_changes_of_this_version_are_told() -> None:
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_of_the_makefile_on_versions_of_python_that_are_supported(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    supported = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    for job in workflow["jobs"].values():
        runs = [step["run"] for step in job["steps"] if "run" in step]
        assert runs
        assert all(run.startswith("make ") and set(run.split()[1:]) <= targets for run in runs)
        setup = next(step for step in job["steps"] if "setup-python" in step.get("uses", ""))["with"]["python-version"]
        versions = job["strategy"]["matrix"]["python"] if "matrix" in setup else [setup]
        assert set(versions) <= supported


def test_the_checks_before_a_commit_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("lint: ")[2].partition("\n\n")[0]
    assert len(hooks) == lint.count("$(BIN)/")
    for hook in hooks:
        assert f"$(BIN)/{hook['entry']}" in lint
