"""The README names every command, option and setting that there is, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from replicator.cli.app import app
from replicator.config import IdMapSettings, RouteSettings, Settings
from replicator.cutover.run import DEFAULT_MAX_LAG_BYTES, DEFAULT_TIMEOUT_S
from replicator.demo.run import DEFAULT_ROWS, DEFAULT_SECONDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = ("README.md", "CHANGELOG.md", "docs/decisions.md")


def section(title):
    parts = re.split(r"^## ", README, flags=re.MULTILINE)
    return next(part for part in parts if part.startswith(f"{title}\n"))


def commands(group=None, prefix=""):
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        path = f"{prefix}{name}"
        if not getattr(command, "commands", None):
            yield path, command
            continue
        if getattr(command, "invoke_without_command", False):
            yield path, command
        yield from commands(command, f"{path} ")


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_its_row_with_all_options(path):
    rows = [line for line in section("Commands").splitlines() if re.match(rf"\| `{path}(?: [A-Z]+)?` \|", line)]
    assert len(rows) == 1, f"one row for `{path}`"
    for parameter in COMMANDS[path].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert any(option in rows[0] for option in parameter.opts), parameter.opts


def test_the_readme_names_no_command_that_does_not_exist():
    told = set(re.findall(r"^\| `([a-z][a-z ]*[a-z])(?: [A-Z]+)?` \|", section("Commands"), re.MULTILINE))
    assert told == set(COMMANDS)


def keys(model, prefix=""):
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}.")
        elif name == "id_maps":
            yield from keys(IdMapSettings, "id_maps.NAME.")
        elif name == "routes":
            yield from keys(RouteSettings, "routes.TABLE.")
        else:
            yield f"{prefix}{name}", field


SETTINGS = dict(keys(Settings))


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_has_its_row(key):
    short = "." + key.rpartition(".")[2]
    first_cells = [line.split("|")[1] for line in section("Settings").splitlines() if line.startswith("| `")]
    assert any(f"`{key}`" in cell or ("id_maps" in cell and f"`{short}`" in cell) for cell in first_cells)


@pytest.mark.parametrize("key", ["snapshot.workers", "stream.max_batch_rows", "metrics.listen", "source.slot"])
def test_defaults_are_told_as_they_are(key):
    row = next(line for line in section("Settings").splitlines() if line.startswith(f"| `{key}`"))
    assert f"`{SETTINGS[key].default}`" in row


def test_defaults_of_options_are_told_as_they_are():
    assert f"`--rows N` ({DEFAULT_ROWS}) · `--seconds S` ({DEFAULT_SECONDS:g})" in README
    assert f"`--max-lag-bytes N` ({DEFAULT_MAX_LAG_BYTES >> 20} MiB) · `--timeout S` ({DEFAULT_TIMEOUT_S:g})" in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    """Files exist; anchors are headings of the README."""
    text = (ROOT / document).read_text()
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert ((ROOT / document).parent / target).exists(), target


def test_hints_that_point_into_the_readme_find_their_section():
    """`config` and `connection` send people to these."""
    assert "## Settings" in README
    assert "### Roles" in README
