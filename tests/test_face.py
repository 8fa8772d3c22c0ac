"""The public face: what `import headstart` offers, and how little it costs."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import headstart

NAMES = [name for name in headstart.__all__ if not name.startswith("__")]
HEAVY = ("matplotlib", "torchmetrics", "pandas", "tensorboard", "IPython")


def test_all_names_what_can_be_imported() -> None:
    """`__all__` holds every public name, each once, sorted; the wings themselves are no part of the face."""
    public = {
        name
        for name, value in vars(headstart).items()
        if not name.startswith("_") and not (isinstance(value, ModuleType) and value.__name__.startswith("headstart."))
    }
    assert set(NAMES) == public
    assert list(headstart.__all__) == sorted(set(headstart.__all__))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_explains_itself(name: str) -> None:
    """Every public class and function has a docstring, and an example unless it is an error."""
    value = getattr(headstart, name)
    assert inspect.isclass(value) or inspect.isfunction(value), f"{name} is neither a class nor a function"
    text = inspect.getdoc(value) if "__doc__" in vars(value) or inspect.isfunction(value) else None
    assert text, f"{name} has no docstring of its own"
    error = inspect.isclass(value) and issubclass(value, BaseException)
    assert error or "\nExample:\n" in f"\n{text}\n", f"the docstring of {name} has no section `Example:`"


def test_importing_is_light() -> None:
    """`import headstart` loads nothing that only some runs need."""
    code = f"import sys, headstart; print(*[name for name in {HEAVY} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - our own
    assert answer.stdout.split() == [], "make these imports in the functions that use them"
