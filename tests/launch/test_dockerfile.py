import re
import tomllib

from conftest import ROOT

DOCKERFILE = (ROOT / "launch/Dockerfile").read_text()


def test_what_is_copied_is_there_and_is_not_ignored():
    ignored, *kept = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith(("#", "**/"))
    ]
    assert ignored == "*"
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    sources = {source for line in copied if "--from=build" not in line for source in line}
    assert {f"!{source.split('/')[0]}" for source in sources} == set(kept)
    assert all((ROOT / source).exists() for source in sources)


def test_the_extras_that_it_names_are_the_projects():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = re.findall(r"EXTRA=(\w+)", DOCKERFILE + (ROOT / "docs/launching.md").read_text())
    assert {"cuda", "tpu"} == set(named) <= set(extras)


def test_nothing_runs_as_root():
    users = re.findall(r"^USER (\S+)$", DOCKERFILE.split("\nFROM ")[-1], flags=re.MULTILINE)
    assert users and users[-1] not in ("0", "root")
