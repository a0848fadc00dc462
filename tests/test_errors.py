import pickle

import pytest

from lora_tools import errors
from lora_tools.errors import LoraToolsError, some

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, Exception)
}
STANDARD = {
    "CheckpointError": ValueError,
    "FormatError": ValueError,
    "UnsupportedError": NotImplementedError,
    "NonFiniteError": ArithmeticError,
    "PolicyError": ValueError,
    "ConvergenceError": ArithmeticError,
    "BoundError": ValueError,
    "OutputError": FileExistsError,
    "DiskError": OSError,
    "DeviceError": RuntimeError,
    "PackageError": ImportError,
    "HubError": OSError,
    "RefusedError": PermissionError,
}


def test_every_error_is_of_the_family_and_of_a_standard_kind():
    assert CLASSES.keys() == {"LoraToolsError", *STANDARD}
    for name, kind in STANDARD.items():
        assert issubclass(CLASSES[name], LoraToolsError)
        assert issubclass(CLASSES[name], kind)


@pytest.mark.parametrize("name", CLASSES)
def test_the_docstring_shows_the_family(name):
    assert name in errors.__doc__


@pytest.mark.parametrize("name", CLASSES)
def test_errors_are_pickled_with_their_notes(name):
    error = CLASSES[name]("x.safetensors: what is wrong").hint("Do this.").hint("Or that.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CLASSES[name]
    assert str(again) == "x.safetensors: what is wrong"
    assert again.__notes__ == ["Do this.", "Or that."]


def test_a_hint_returns_the_error_itself():
    error = LoraToolsError("x")
    assert error.hint("y") is error


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], ""),
        (["a"], "a"),
        (list("abcde"), "a, b, c, d, e"),
        (list("abcdefg"), "a, b, c, d, e and 2 more"),
        ((n for n in range(7)), "0, 1, 2, 3, 4 and 2 more"),
    ],
)
def test_some(items, expected):
    assert some(items) == expected
