"""README and docs against the code: tables and links, and every shell command, which is checked without running it."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torchvision
import typer

from app import errors
from app.commands.cli import app
from app.main import create_app
from app.settings import PROTOCOLS, Settings
from tests.conftest import REPOSITORY, environment
from tests.docs import settings
from tests.docs.pages import PAGES, Command, blocks, commands, rows, text

LANGUAGES = {"sh", "text", "json", "python", "js", "ts", "tsx", "swift", "kotlin", "yaml", "xml", "html", "nginx"}
PROGRAMS = "topk|make|curl|pip|docker|kubectl|npm|npx|python3?|serve|echo"
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PATHS = r"`(?:GET |POST )?(/[^\s`]*)`"


def words(command: Command) -> list[str]:
    """A command's words, without the variables before it and without what follows a pipe."""
    found = shlex.split(command.line, comments=True)
    end = next((i for i, word in enumerate(found) if word in ("|", "&&")), len(found))
    return [word for i, word in enumerate(found[:end]) if not all(re.match(r"[A-Z_]+=", w) for w in found[: i + 1])]


def test_the_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= 150


def test_the_code_map_has_every_package() -> None:
    named = set(re.findall(r"^    .*", text("README.md"), re.MULTILINE))
    packages = {path.parent.name for path in (REPOSITORY / "app").glob("*/__init__.py")} | {"web"}
    assert packages <= set(re.findall(r"app/(\w+)/", "\n".join(named)))


def test_the_settings_page_is_generated_from_the_code() -> None:
    assert settings.PAGE.read_text() == settings.page(), "run python -m tests.docs.settings"


def test_the_settings_of_the_readme_exist_and_have_these_defaults() -> None:
    table = rows("README.md", "setting")
    assert len(table) == 8
    for name, (default, _) in table.items():
        field = Settings.model_fields[name.strip("`").removeprefix("TOPK_").lower()]
        assert default == settings.default(field.default)


def test_the_api_tables_have_every_route() -> None:
    paths = create_app(Settings(_env_file=None)).openapi()["paths"]
    served = {re.sub("(/versions)?/{version}", "", path) for path in paths} | {"/", "/docs", "/openapi.json"}
    protocols = {
        name.strip("`"): re.findall(PATHS, row[0]) for name, row in rows("docs/protocols.md", "protocol").items()
    }
    assert list(protocols) == list(PROTOCOLS)
    for page in ("README.md", "docs/api.md"):
        assert set(re.findall(PATHS, " ".join(rows(page, "request")))).union(*protocols.values()) == served


def test_the_options_table_has_every_option() -> None:
    paths = create_app(Settings(_env_file=None)).openapi()["paths"]
    options = {
        parameter["name"]
        for route in ("predict", "predict/batch", "embed", "embed/batch")
        for parameter in paths[f"/v1/{route}"]["post"]["parameters"]
        if parameter["in"] == "query"
    }
    assert {name.strip("`") for name in rows("docs/api.md", "option")} == options


def test_the_error_table_is_the_error_tree() -> None:
    def tree(error: type[errors.TopkError]) -> Iterator[type[errors.TopkError]]:
        yield error
        for below in error.__subclasses__():
            yield from tree(below)

    assert {code.strip("`"): int(row[0]) for code, row in rows("docs/api.md", "code").items()} == {
        error.code: error.status for error in tree(errors.TopkError)
    }


@pytest.mark.parametrize(("name", "row"), rows("docs/models.md", "model").items())
def test_the_table_of_models_has_the_published_figures(name: str, row: list[str]) -> None:
    architecture, _, entry = name.strip("`").partition(":")
    weights = torchvision.models.get_model_weights(architecture)[entry or "DEFAULT"]
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]
    published = (accuracy["acc@1"], accuracy["acc@5"], weights.meta["_file_size"], weights.meta["_ops"])
    figures = [f"{value:.{digits}f}" for value, digits in zip(published, (1, 1, 0, 1), strict=True)]
    assert row[:-1] == [*figures, str(weights.transforms().crop_size[0])]


@pytest.mark.parametrize("page", PAGES)
def test_every_code_block_names_its_language(page: str) -> None:
    """Commands are in blocks marked ``sh`` alone, which are run or checked."""
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert len(re.findall(r"^ *```", text(page), re.MULTILINE)) == 2 * len(blocks(page))
    assert not re.search(
        rf"^    +(?:\$ )?(?:{PROGRAMS}) ", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL), re.MULTILINE
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text(page)):
        path, _, anchor = "".join(target).partition("#")
        if path.startswith(("http://", "https://")):
            continue
        linked = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert linked.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], anchor


def test_every_page_is_linked() -> None:
    linked = {link for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)", text(page))}
    names = {link.rsplit("/", 1)[-1] for link in linked if not link.endswith("README.md")}
    assert {Path(page).name for page in PAGES if page.startswith("docs/")} <= names


@pytest.mark.parametrize("page", PAGES)
def test_no_page_installs_topk_from_the_package_index(page: str) -> None:
    assert not re.search(
        r"pip install '?topk",
        text(page).replace("pip install 'topk[otel]'", "") if page == "docs/settings.md" else text(page),
    )
    assert {extra for found in re.findall(r"'\.\[(.*?)\]'", text(page)) for extra in found.split(",")} <= set(EXTRAS)


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command.page}: {command.line[:60]}")
def test_every_command_is_portable_and_its_options_exist(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert "base64 -w" not in command.line
    assert not re.search(r"(?<!')\b(?:localhost:8000|http:)\S*\?", command.line), "a URL with ? is not quoted"
    match words(command):
        case ["topk", "--help"]:
            pass
        case ["topk", name, *arguments]:
            check_options(name, arguments)
        case ["make", *arguments]:
            ran = subprocess.run(["make", "-n", *arguments], capture_output=True, text=True, env=environment())
            assert ran.returncode == 0, ran.stderr
        case ["python", "-m", module]:
            assert find_spec(module)
        case ["pip", "install", wanted]:
            assert wanted.startswith(".[")
        case [".", path]:
            makefile = (REPOSITORY / "Makefile").read_text()
            assert path == f"{re.findall(r'^VENV [?]= (.*)', makefile, re.MULTILINE)[0]}/bin/activate"
        case ["curl" | "echo" | "(umask", *_]:
            pass
        case unknown:
            assert command.needs, f"no rule runs {unknown}: begin the block with '# needs ...'"
    for path in re.findall(r"\b(?:deploy|docs)/[\w./-]+", command.line):
        assert (REPOSITORY / path).exists(), path


def check_options(name: str, arguments: list[str]) -> None:
    """Parse a command's options, and the settings among them, as the command does."""
    parsed = typer.main.get_command(app).commands[name].make_context(name, arguments).params  # type: ignore[attr-defined]
    given = {option: value for option, value in parsed.items() if option in Settings.model_fields and value is not None}
    Settings(_env_file=None, **given)


def test_the_samples_need_nothing_that_is_not_named() -> None:
    """Third-party packages that Python samples import are in the page's pip install lines."""
    for page in PAGES:
        named = " ".join(re.findall(r"pip install ([^`\n]*)", text(page)))
        for block in blocks(page, "python"):
            for module in re.findall(r"^(?:import|from) (\w+)", block.text, re.MULTILINE):
                known = module in sys.stdlib_module_names or module in ("urllib3", "numpy")  # come with the others
                assert known or module.replace("_", "") in named.replace("_", "").replace("-", ""), (page, module)
