"""Everything shown runs: the ```python blocks of the README and of `docs/`, and the examples in docstrings.

A page's blocks share one namespace and run in order, and so do the examples of one module. Each page and each module
gets a folder of its own, in which these pictures lie:

    flowers/train, flowers/val                 daisy, rose, tulip: 24 and 9 of each
    pets/train, pets/val, pets/test            cat, dog, rabbit: 24, 9 and 9 of each
    hotdog/train, hotdog/test                  hotdog, not_hotdog: 24 and 9 of each; no val
    birds                                      crow, owl, wren: 9 of each, not split
    new/one.jpg, new/two.jpg, new.jpg          pictures without labels

Networks start from random weights, where a page asks for a download too. A block that cannot run here has a comment on
the line above it, `<!-- not run: the reason -->`.

A ```text block that follows a block of Python shows what that prints; `...` stands for anything. Where it depends on
chance, time, a download or the reader's pictures, the line above the text says so: `<!-- varies: with what -->`.
"""

import ast
import contextlib
import doctest
import importlib
import io
import itertools
import re
import shutil
import sys
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "headstart"

SHAPES = ("circle", "square", "triangle")
FOLDERS = {
    "flowers": ({"train": "train", "val": "val"}, ("daisy", "rose", "tulip")),
    "pets": ({"train": "train", "val": "val", "test": "val"}, ("cat", "dog", "rabbit")),
    "hotdog": ({"train": "train", "test": "val"}, ("hotdog", "not_hotdog")),
    "birds": ({".": "val"}, ("crow", "owl", "wren")),
}
"""Folder: (its parts and the part of the shapes each shows, the classes that stand for circle, square, triangle)."""


PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<words>[^`\n]*)\n(?P<code>.*?)^(?P=indent)(?P=ticks) *$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.*\S) -->")
VARIES = re.compile(r"<!-- varies: .*\S -->")


# --- what is on a page ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of Python, where it begins, why it is not run, if it is not, and what the page says it prints."""

    page: Path
    line: int
    code: str
    reason: str | None = None
    shown: str | None = None

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(path: Path) -> str:
    """Name a file as seen from the repository."""
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


def blocks_on(page: Path) -> list[Block]:
    """Find the Python blocks of a page; `line` is that of their first line of code."""
    text = page.read_text("utf-8")
    found = []
    fences = list(FENCE.finditer(text))
    for fence, following in itertools.zip_longest(fences, fences[1:]):
        language, *words = fence["words"].split() or [""]
        if not language.lower().strip("{.").startswith("py"):
            continue
        line = text.count("\n", 0, fence.start("code")) + 1
        above = NOT_RUN.fullmatch(line_above(fence, text))
        shown = output_shown(following, text)
        block = Block(page, line, textwrap.dedent(fence["code"]), above and above["reason"], shown)
        if language != "python":
            pytest.fail(f"{block}: write ```python instead of ```{language}, so that the block is run", pytrace=False)
        if "no-run" in words and not above:
            pytest.fail(f"{block}: say why on the line above: <!-- not run: the reason -->", pytrace=False)
        found.append(block)
    return found


def output_shown(fence: re.Match[str] | None, text: str) -> str | None:
    """Give what a fence after a block of Python says that it prints, unless it is of another kind or varies."""
    if fence is None or fence["words"].split() != ["text"] or VARIES.fullmatch(line_above(fence, text)):
        return None
    return textwrap.dedent(fence["code"])


def line_above(fence: re.Match[str], text: str) -> str:
    """Give the last line before a fence that is not empty."""
    return text[: fence.start()].rstrip().rpartition("\n")[2].strip()


# --- running it -------------------------------------------------------------------------------------------------------


def run_page(page: Path) -> None:
    """Run the blocks of a page in order, in one namespace; a failure names page and line."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_on(page):
        if block.reason:
            continue
        code = "\n" * (block.line - 1) + block.code  # so that tracebacks show the lines of the page
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, str(page), "exec"), namespace)  # noqa: S102 - the point of it
        except Exception as error:
            lines = [step.lineno for step in traceback.extract_tb(error.__traceback__) if step.filename == str(page)]
            line = error.lineno if isinstance(error, SyntaxError) else [block.line, *lines][-1]
            complaint = f"{name_of(page)}:{line} raised\n\n{''.join(traceback.format_exception(error))}"
        else:
            print(printed.getvalue(), end="")
            if block.shown is None or is_as_shown(block.shown, printed.getvalue()):
                continue
            complaint = f"{block} prints\n\n{printed.getvalue()}\nand the page shows\n\n{block.shown}"
        pytest.fail(complaint, pytrace=False)


def is_as_shown(shown: str, printed: str) -> bool:
    """Compare as doctest does with ELLIPSIS; blanks at the ends of lines do not count."""
    wanted, got = ("".join(f"{line.rstrip()}\n" for line in text.rstrip().splitlines()) for text in (shown, printed))
    return doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS)


def run_docstrings(path: Path, namespace: dict[str, Any]) -> None:
    """Run the examples in a module's docstrings, from top to bottom, in one namespace."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    complaints: list[str] = []
    for line, text in docstrings_in(path):
        test = doctest.DocTestParser().get_doctest(text, {}, path.stem, str(path), line - 1)
        test.globs = namespace
        runner.run(test, out=complaints.append, clear_globs=False)
    if complaints:
        pytest.fail("".join(complaints), pytrace=False)


def docstrings_in(path: Path) -> list[tuple[int, str]]:
    """Give line and text of the docstrings with examples, in the order in which they stand."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and ">>> " in text:
                found.append((node.body[0].lineno, text))
    return sorted(found)


# --- where it runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures_here(shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder with the pictures that pages speak of the current one."""
    for folder, (parts, classes) in FOLDERS.items():
        for part, shown in parts.items():
            for shape, kind in zip(SHAPES, classes, strict=False):
                shutil.copytree(shapes_folder / shown / shape, tmp_path / folder / part / kind)
    (tmp_path / "new").mkdir()
    for shape, target in zip(SHAPES, ("new.jpg", "new/one.jpg", "new/two.jpg"), strict=True):
        shutil.copy(min((shapes_folder / "val" / shape).iterdir()), tmp_path / target)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def without_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open networks with random weights where the library's download is asked for."""
    zoo = importlib.import_module("headstart.model.zoo")
    importlib.import_module("headstart")
    real = zoo.open_network

    def open_network(*arguments: Any, **options: Any) -> Any:
        if options.get("pretrained", True) is True:
            options["pretrained"] = False
        return real(*arguments, **options)

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "headstart" and vars(module).get("open_network") is real:
            monkeypatch.setattr(module, "open_network", open_network)


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if "```py" in page.read_text("utf-8")], ids=name_of)
@pytest.mark.usefixtures("pictures_here", "without_downloads")
def test_every_block_of_a_page_runs(page: Path) -> None:
    """Whoever copies a page from top to bottom sees no error."""
    run_page(page)


@pytest.mark.parametrize("path", [path for path in sorted(PACKAGE.rglob("*.py")) if docstrings_in(path)], ids=name_of)
@pytest.mark.usefixtures("pictures_here", "without_downloads")
def test_every_example_in_a_docstring_holds(path: Path) -> None:
    """Examples give what they show."""
    name = ".".join(["headstart", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    run_docstrings(path, dict(vars(importlib.import_module(name))))


def test_blocks_that_are_not_run_are_few() -> None:
    """Each says why, and there is at most one for every ten that run."""
    blocks = [block for page in PAGES for block in blocks_on(page)]
    idle = [f"{block}: {block.reason}" for block in blocks if block.reason]
    listing = f"{len(idle)} of {len(blocks)} blocks are not run\n" + "\n".join(idle)
    print(listing)
    assert len(idle) <= max(1, len(blocks) // 10), listing


# --- the runner itself ------------------------------------------------------------------------------------------------


def test_blocks_share_a_namespace_also_in_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A later block knows what an earlier one made; other languages and what has a reason are left alone."""
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfound = []\n```\n\n* a list\n\n"
        "    ```python\n    for x in (1, 2):\n        found.append(x)\n    ```\n\n"
        "```bash\nrm\n```\n<!-- not run: costs money -->\n\n```python no-run\n1 / 0\n```\n"
        "```python\nprint(found)\n```\n"
    )
    run_page(page)
    assert capsys.readouterr().out == "[1, 2]\n"
    assert [block.reason for block in blocks_on(page)] == [None, None, "costs money", None]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# A\n\n```python\nx = 1\n\n1 / x\n1 / 0\n```\n", r"page\.md:7 raised[\s\S]*ZeroDivisionError"),
        ("# A\n\n```python\ndef half(x):\n    return x / 0\n```\n\n```python\nhalf(1)\n```\n", r"page\.md:5 raised"),
        ("# A\n\n```python\nx = (1\n```\n", r"page\.md:4 raised[\s\S]*SyntaxError"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", r"page\.md:3 raised[\s\S]*UserWarning: old"),
        ("```py\nx = 1\n```\n", r"page\.md:2: write ```python"),
        ("```python no-run\nx = 1\n```\n", r"page\.md:2: say why"),
    ],
)
def test_a_failing_block_names_page_and_line(text: str, told: str, tmp_path: Path) -> None:
    """The message leads to the line to mend."""
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(pytest.fail.Exception, match=told):
        run_page(page)


@pytest.mark.parametrize("shown", ["1  \n2\n", "1\n2", "...\n2\n", "1\n...\n", "<!-- varies: with the moon -->\n7\n"])
def test_a_text_block_shows_what_the_block_before_it_prints(shown: str, tmp_path: Path) -> None:
    """Blanks at the ends do not count, dots stand for anything, what varies is not compared."""
    comment, text = shown.split("\n", 1) if shown.startswith("<!--") else ("", shown)
    page = tmp_path / "page.md"
    page.write_text(f"```python\nprint('1\\n2 ')\n```\n\nprints\n\n{comment}\n```text\n{text.rstrip()}\n```\n")
    run_page(page)


def test_a_text_block_that_shows_something_else_fails_and_names_the_block(tmp_path: Path) -> None:
    """What is on the page is what the reader gets; a text that follows no Python shows something else than output."""
    page = tmp_path / "page.md"
    page.write_text("```text\na folder\n```\n\n  ```python\n  print(1)\n  ```\n\n  ```text\n  2\n  ```\n")
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:6 prints\s+1\s+and the page shows\s+2"):
        run_page(page)


def test_a_failing_example_names_file_and_line(tmp_path: Path) -> None:
    """The message leads to the line to mend; a property's docstring counts too, and names made above are known."""
    path = tmp_path / "room.py"
    path.write_text(
        '"""A room.\n\n    >>> here = 2\n"""\n\n\nclass Room:\n    @property\n    def size(self):\n'
        '        """Tell.\n\n        >>> here\n        3\n        """\n'
    )
    with pytest.raises(pytest.fail.Exception, match=r"room\.py\", line 12[\s\S]*Got:\s+2"):
        run_docstrings(path, {})
