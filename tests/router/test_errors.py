import pickle

import pytest

from router import errors


def _all_classes(root=errors.RouterError):
    return {root}.union(*(_all_classes(child) for child in root.__subclasses__()))


def test_every_error_has_a_metric_label_from_the_closed_set():
    """A failure can always be counted: each class of the tree names one of the known values of error_type."""
    assert {cls.error_type for cls in _all_classes()} <= set(errors.ERROR_TYPES)
    assert len(set(errors.ERROR_TYPES)) == len(errors.ERROR_TYPES)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.InvalidRequest, ValueError),
        (errors.DimensionMismatch, errors.InvalidRequest),
        (errors.NonFiniteInput, errors.InvalidRequest),
        (errors.ConfigError, ValueError),
        (errors.ModelNotFound, FileNotFoundError),
        (errors.ModelNotFound, errors.ModelError),
        (errors.ModelFormatError, errors.ModelError),
        (errors.DataNotFound, FileNotFoundError),
    ],
)
def test_errors_are_caught_by_what_python_programs_expect(cls, builtin):
    """Code that knows only ValueError or FileNotFoundError still catches the router's errors, message untouched."""
    with pytest.raises(builtin, match=r"^what, where, remedy$"):
        raise cls("what, where, remedy")


def test_an_open_breaker_says_when_to_come_back():
    """BreakerOpen carries the seconds until the next probe, also to another process."""
    error = pickle.loads(pickle.dumps(errors.BreakerOpen("router is open", retry_after_s=12.5)))
    assert str(error) == "router is open"
    assert error.retry_after_s == 12.5
