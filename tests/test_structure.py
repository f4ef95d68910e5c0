"""The shape of the code is kept by tests, so that a reader can rely on it: mirrors, layers, words, sizes."""

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
CODE, TESTS = CHECKOUT / "apigw", CHECKOUT / "tests"

# Declarations: nothing to run, so nothing of their own to test.
DECLARATIONS = {"constants.py", "errors.py", "exchange.py", "ports.py", "config/model.py"}
# Modules without a test file of their own as yet. This may only shrink.
OWED: set[str] = set()
# Folders of tests that mirror something else than apigw/.
OTHER_TESTS = {"chaos", "demo", "e2e", "golden"}
# Words that say nothing.
EMPTY_WORDS = {"manager", "handler", "engine", "utils", "util", "helper", "helpers", "common", "misc"}
MAX_LINES = 400  # house style says 300; beyond this a module has two meanings
MAX_FUNCTION_LINES = 60  # house style says about 40, tables and docstrings aside


def modules() -> list[str]:
    """The modules of apigw that say something: `edge/site.py`."""
    return sorted(
        str(path.relative_to(CODE)) for path in CODE.rglob("*.py") if path.name != "__init__.py" and path.stat().st_size
    )


def mirror_of(module: str) -> str:
    """Where the tests of a module are, from tests/."""
    path = Path(module)
    return str(path.with_name(f"test_{path.name}"))


def imports(module: str) -> Iterator[str]:
    """The full names that a module imports: `twisted.internet.reactor`."""
    for node in ast.walk(ast.parse((CODE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_test_file() -> None:
    missing = {module for module in modules() if not (TESTS / mirror_of(module)).exists()}
    assert missing <= OWED | DECLARATIONS


def test_every_test_file_has_its_module() -> None:
    mirrors = {mirror_of(module) for module in modules()}
    for path in TESTS.rglob("test_*.py"):
        name = str(path.relative_to(TESTS))
        assert name in mirrors or name == "test_structure.py" or name.split("/")[0] in OTHER_TESTS, name


def test_what_is_owed_exists() -> None:
    assert {*modules()} >= OWED | DECLARATIONS


def test_the_layers_name_every_package_and_module() -> None:
    """import-linter holds it in `make check`; here, that nobody switched it off."""
    settings = configparser.ConfigParser()
    settings.read(CHECKOUT / "setup.cfg")
    layers = settings["importlinter:contract:layers"]
    assert layers["containers"] == "apigw"
    assert layers.getboolean("exhaustive")
    assert "ignore_imports" not in layers
    named = {word for word in layers["layers"].replace("|", " ").split()}
    children = {module.split("/")[0].removesuffix(".py") for module in modules()}
    assert children <= {word.strip("()") for word in named}


def test_twisteds_packages_stay_twisteds() -> None:
    """An __init__.py in twisted/ or twisted/plugins/ of the checkout would hide Twisted itself."""
    found = sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "twisted").rglob("*.py"))
    assert found == ["twisted/plugins/apigw_plugin.py"]


def test_only_the_service_imports_the_reactor() -> None:
    found = {module for module in modules() for name in imports(module) if name == "twisted.internet.reactor"}
    assert found == {"service.py"}


def test_nothing_is_an_inline_callback_and_no_looping_call_runs() -> None:
    """inlineCallbacks costs four times a coroutine; a LoopingCall stops for good when its function raises."""
    banned = {"twisted.internet.defer.inlineCallbacks", "twisted.internet.task.LoopingCall"}
    assert [(module, name) for module in modules() for name in imports(module) if name in banned] == []


@pytest.mark.parametrize("module", modules())
def test_a_module_says_what_it_is_and_stays_readable(module: str) -> None:
    """A docstring, a name that says something, at most MAX_LINES, functions at most MAX_FUNCTION_LINES."""
    text = (CODE / module).read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert not EMPTY_WORDS & {*Path(module).stem.split("_"), *Path(module).parts}
    assert text.count("\n") <= MAX_LINES
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_no_test_patches_what_it_tests() -> None:
    """Real servers and fakes of the ports instead (apigw/testing.py)."""
    word = "mock" + "."
    for path in TESTS.rglob("*.py"):
        assert word + "patch" not in path.read_text(), path
