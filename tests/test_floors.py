"""The house stands: every import goes downwards, and no file climbs over a wall.

The floors are read from the table in `docs/explanation/architecture.md`; the page and the package cannot drift apart.
Each check takes a folder and gives the list of what is wrong in it, so that the tests at the end can plant a fault in a
small package and see it found.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "explanation" / "architecture.md"
PACKAGE = REPOSITORY / "src" / "headstart"

WALLS = [
    ("callbacks/*", "training/loop", "callbacks meet the loop in training/run and training/callback"),
    ("callbacks/*", "learner", "a callback reaches the Learner through self.learner; its type is in training/run"),
    ("callbacks/*", "callbacks/*", "each callback can be read alone; move what two share to training/"),
    ("training/loop", "callbacks/*", "the loop knows only training/callback, never a built-in callback"),
    ("insight/*", "learner", "insight works on the parts that a Learner is made of"),
]
"""Who may not import what, and why; on top of the floors."""

LIBRARIES = [
    ("torchvision.models", ("model/*",)),
    ("timm.data", ("model/*", "data/preprocessing")),
    ("timm.optim", ("model/*", "training/optimizer")),
    ("timm", ("model/*",)),
]
"""Which files may use what of timm and torchvision; of several that fit, the first counts."""

STEPPERS = {"training/loop": "", "callbacks/schedule": "scheduler.optimizer"}
"""Which files may step an optimizer, and which one (empty is any): a scheduler's stand-in holds no weights."""


@dataclass(frozen=True)
class Room:
    """Where a file lives: its floor, its row in the table, its place in the row."""

    floor: int
    row: int
    seat: int


Table = dict[str, Room]


def read_table(page: str) -> Table:
    """Find every file in the table of a page; keys look like `training/loop` and `learner`."""
    rooms: Table = {}
    for row, line in enumerate(page.splitlines()):
        if match := re.match(r"\|\s*(\d+)\s*\|\s*`([^`]+)/`\s*\|([^|]*)\|", line):
            floor, wing = int(match[1]), "" if match[2] == "." else f"{match[2]}/"
            for seat, name in enumerate(re.findall(r"`([^`]+)`", match[3])):
                rooms[wing + name] = Room(floor, row, seat)
    return rooms


def files_in(package: Path) -> dict[str, ast.Module]:
    """Parse every file of a package; the `__init__` of a wing is looked at by `furnished_doors`."""
    paths = [path for path in sorted(package.rglob("*.py")) if path.name != "__init__.py" or path.parent == package]
    return {path.relative_to(package).with_suffix("").as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def imported_names(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Give line and full dotted name of all that a file imports, wherever in the file the import stands."""
    here = ["headstart", *name.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            parts = [*above, *(node.module or "").split(".")]
            base = ".".join(part for part in parts if part)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def own_imports(name: str, tree: ast.Module, files: dict[str, ast.Module]) -> Iterator[tuple[int, str]]:
    """Give line and file of all that a file imports from the package itself."""
    for line, dotted in imported_names(name, tree):
        package, *parts = dotted.split(".")
        if package == "headstart":
            candidates = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
            wing = parts[0] if any(file.startswith(f"{parts[0]}/") for file in files) else ""
            yield line, next((file for file in candidates if file in files), f"{wing}/__init__".lstrip("/"))


# --- the checks -------------------------------------------------------------------------------------------------------


def unlisted(package: Path, rooms: Table) -> list[str]:
    """Find files that the table does not name, and names that no file has."""
    files = files_in(package)
    missing = [
        f"{name}.py has no place in the table: give it the lowest floor that has all it needs"
        for name in files
        if name not in rooms
    ]
    return missing + [
        f"the table names {name}, but there is no {name}.py: write it or strike it out"
        for name in rooms
        if name not in files
    ]


def upward_imports(package: Path, rooms: Table) -> list[str]:
    """Find imports that do not go to a lower floor or to a file named earlier in the same row."""
    files = files_in(package)
    faults = []
    for name, tree in files.items():
        for line, target in sorted(set(own_imports(name, tree, files))):
            if target.endswith("/__init__"):
                wing = target.partition("/")[0]
                faults.append(f"{name}.py:{line} imports from {wing}/ what is no file there: name the file that has it")
            elif name in rooms and target in rooms and (reason := _why_not(rooms[name], rooms[target])):
                faults.append(f"{name}.py:{line} imports {target}, which is {reason}")
    return faults


def _why_not(importer: Room, target: Room) -> str:
    """Say why one room may not import another, or nothing when it may."""
    if target.floor > importer.floor:
        return f"on floor {target.floor}, above floor {importer.floor}: move what is needed down"
    if target.floor == importer.floor and target.row != importer.row:
        return f"in another row of floor {target.floor}: move what is needed down"
    if target.row == importer.row and target.seat >= importer.seat:
        return "not named before it in its row: change the order in the table, or move what is needed down"
    return ""


def climbed_walls(package: Path, rooms: Table) -> list[str]:
    """Find imports that go downwards, but through a wall."""
    files = files_in(package)
    return [
        f"{name}.py:{line} imports {target}: {reason}"
        for name, tree in files.items()
        for line, target in own_imports(name, tree, files)
        for importer, forbidden, reason in WALLS
        if fnmatch(name, importer) and fnmatch(target, forbidden)
    ]


def stray_libraries(package: Path, rooms: Table) -> list[str]:
    """Find uses of timm and torchvision outside of the rooms that may know them."""
    faults = []
    for name, tree in files_in(package).items():
        found = {}
        for line, used in sorted({*imported_names(name, tree), *_attributes(tree)}):
            rule = next((rule for rule in LIBRARIES if f"{used}.".startswith(f"{rule[0]}.")), None)
            if rule and not any(fnmatch(name, room) for room in rule[1]):
                found[line, rule] = used  # of `timm.models` and `timm.models.resnet` on one line the longer is told
        for (line, (library, allowed)), used in found.items():
            faults.append(f"{name}.py:{line} uses {used}: only {' and '.join(allowed)} may know {library}")
    return faults


def _attributes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Give line and full name of all that a file reaches by dots from an imported module (`timm.data.x`)."""
    known = {
        alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in known:
                yield node.lineno, f"{known[first]}.{rest}"


def asserts(package: Path, rooms: Table) -> list[str]:
    """Find assert statements."""
    return [
        f"{name}.py:{node.lineno} asserts: raise an error with its three parts, or let a test assert it"
        for name, tree in files_in(package).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]


def stray_steps(package: Path, rooms: Table) -> list[str]:
    """Find calls of `backward` and of an optimizer's `step` outside of the loop."""
    faults = []
    for name, tree in files_in(package).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                words = [owner, *map(ast.unparse, node.args)]
                steps = node.func.attr == "step" and any("optim" in word.split(".")[-1].lower() for word in words)
                if steps and STEPPERS.get(name) in ("", owner):
                    continue
                if steps or (node.func.attr == "backward" and name != "training/loop"):
                    faults.append(
                        f"{name}.py:{node.lineno} calls {owner}.{node.func.attr}: only training/loop moves weights"
                    )
    return faults


def furnished_doors(package: Path, rooms: Table) -> list[str]:
    """Find wings whose `__init__` holds more, or less, than a docstring."""
    return [
        f"{path.parent.name}/__init__.py must hold a docstring and nothing else, so that every import names its file"
        for path in sorted(package.glob("*/__init__.py"))
        if not ast.get_docstring(tree := ast.parse(path.read_text("utf-8"))) or len(tree.body) != 1
    ]


Check = Callable[[Path, Table], list[str]]
CHECKS: list[Check] = [unlisted, upward_imports, climbed_walls, stray_libraries, asserts, stray_steps, furnished_doors]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_stands(check: Check) -> None:
    """Nothing is wrong in the package."""
    faults = check(PACKAGE, read_table(PAGE.read_text("utf-8")))
    assert not faults, "\n" + "\n".join(faults)


# --- the checks find what they look for -------------------------------------------------------------------------------

SMALL_PAGE = """
| Floor | Place | Files in order | What lives there |
|---|---|---|---|
| 5 | `./` | `__init__` `learner` | the face |
| 4 | `callbacks/` | `stopping` `saving` | callbacks |
| 4 | `insight/` | `predictions` | insight |
| 3 | `training/` | `callback` `loop` `optimizer` | the loop |
| 2 | `model/` | `zoo` | networks |
| 1 | `data/` | `preprocessing` `loading` | pictures |
| 0 | `./` | `errors` `files` | what all need |
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Build a small package in which all is well."""
    for name in read_table(SMALL_PAGE):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text('"""A room."""\n')
        if path.parent != tmp_path:
            (path.parent / "__init__.py").write_text('"""A wing."""\n')
    (tmp_path / "learner.py").write_text("from headstart.training.loop import Loop\nfrom headstart import errors\n")
    (tmp_path / "training/loop.py").write_text("loss.backward()\nrun.optimizer.step()\nscaler.step(optimizer)\n")
    (tmp_path / "training/optimizer.py").write_text("import timm.optim\ntimm.optim.create_optimizer_v2\n")
    (tmp_path / "callbacks/saving.py").write_text("from ..training.callback import Callback\nself.scheduler.step()\n")
    (tmp_path / "files.py").write_text(
        "from headstart.errors import Oops\nimport torchvision\ntorchvision.transforms\n"
    )
    return tmp_path


def test_a_good_house_has_no_faults(house: Path) -> None:
    """The checks do not cry wolf."""
    assert [fault for check in CHECKS for fault in check(house, read_table(SMALL_PAGE))] == []


PLANTED = [
    (unlisted, "data/attic", "", "data/attic.py has no place in the table"),
    (
        upward_imports,
        "errors",
        "from headstart.files import write",
        "errors.py:1 imports files, which is not named bef",
    ),
    (upward_imports, "files", "from headstart.files import write", "files.py:1 imports files, which is not named bef"),
    (
        upward_imports,
        "data/loading",
        "import headstart.model.zoo",
        "data/loading.py:1 imports model/zoo, which is on fl",
    ),
    (
        upward_imports,
        "data/loading",
        "from headstart.model import zoo",
        "model/zoo, which is on floor 2, above floor 1",
    ),
    (upward_imports, "data/loading", "from ..model.zoo import opened", "model/zoo, which is on floor 2, above floor 1"),
    (upward_imports, "data/preprocessing", "from . import loading", "data/loading, which is not named before"),
    (upward_imports, "files", "def late():\n    from headstart.learner import Learner", "files.py:2 imports learner"),
    (upward_imports, "files", "if TYPE_CHECKING:\n    from headstart import Learner", "files.py:2 imports __init__"),
    (upward_imports, "insight/predictions", "import headstart.callbacks.saving", "in another row of floor 4"),
    (
        upward_imports,
        "learner",
        "from headstart.model import opened",
        "learner.py:1 imports from model/ what is no file",
    ),
    (climbed_walls, "callbacks/saving", "from headstart.training.loop import Loop", "callbacks meet the loop in"),
    (climbed_walls, "callbacks/saving", "import headstart.callbacks.stopping", "each callback can be read alone"),
    (climbed_walls, "callbacks/saving", "from headstart import learner", "a callback reaches the Learner through"),
    (climbed_walls, "training/loop", "from headstart.callbacks import saving", "never a built-in callback"),
    (climbed_walls, "insight/predictions", "from headstart.learner import Learner", "insight works on the parts"),
    (stray_libraries, "learner", "import timm", "learner.py:1 uses timm: only model/* may know timm"),
    (stray_libraries, "learner", "from timm import create_model", "uses timm.create_model: only model/*"),
    (stray_libraries, "data/loading", "import timm.data", "only model/* and data/preprocessing may know timm.data"),
    (stray_libraries, "learner", "from torchvision.models import vgg16", "uses torchvision.models.vgg16"),
    (stray_libraries, "learner", "import torchvision as tv\ntv.models.vgg16()", "py:2 uses torchvision.models.vgg16"),
    (asserts, "files", "assert True", "files.py:1 asserts"),
    (stray_steps, "callbacks/saving", "run.loss.backward()", "callbacks/saving.py:1 calls run.loss.backward"),
    (stray_steps, "callbacks/saving", "self.run.optimizer.step()", "calls self.run.optimizer.step"),
    (stray_steps, "learner", "scaler.step(optimizer)", "learner.py:1 calls scaler.step"),
    (furnished_doors, "data/__init__", '"""Data."""\nimport torch', "data/__init__.py must hold a docstring and"),
]


@pytest.mark.parametrize(("check", "file", "code", "message"), PLANTED)
def test_a_planted_fault_is_found(check: Check, file: str, code: str, message: str, house: Path) -> None:
    """Each check tells file, line and cure of what was planted, and only that."""
    (house / f"{file}.py").write_text(code)
    faults = check(house, read_table(SMALL_PAGE))
    assert len(faults) == 1
    assert message in faults[0]


def test_a_missing_file_is_told(house: Path) -> None:
    """A name in the table without a file is a fault."""
    (house / "learner.py").unlink()
    assert "the table names learner, but there is no learner.py" in unlisted(house, read_table(SMALL_PAGE))[0]
