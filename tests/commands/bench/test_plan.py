import pytest

from app.commands.bench import plan
from app.errors import LoadTestError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, None, False), ("closed", (16,), ())),
        (("1,4,64", None, False), ("closed", (1, 4, 64), ())),
        ((None, "20,37.5", False), ("open", (), (20.0, 37.5))),
        (("8", None, True), ("capacity", (8,), ())),
    ],
)
def test_the_options_say_which_load(arguments: tuple[str, str, bool], expected: object) -> None:
    assert plan.load(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("4", "10", False), "--rate cannot be combined"),
        ((None, "10", True), "--rate cannot be combined"),
        (("1,2", None, True), "takes a single number of --clients, got 1,2"),
        (("1.5", None, False), "must be whole numbers, got 1.5"),
        (("0", None, False), "must be a number above 0"),
        ((None, "inf", False), "must be a number above 0"),
        ((None, "10,", False), "must be a number above 0"),
    ],
)
def test_what_makes_no_load_is_refused_in_plain_words(arguments: tuple[str, str, bool], words: str) -> None:
    with pytest.raises(LoadTestError, match=words):
        plan.load(*arguments)


def test_headers_are_lines_and_the_key_is_a_bearer_token() -> None:
    assert plan.headers(["X-A: b: c", "X-D:e"], "key") == {"Authorization": "Bearer key", "X-A": "b: c", "X-D": "e"}


@pytest.mark.parametrize(("line", "key"), [("nothing", None), (": x", None), ("X: a\nb", None), ("X: y", "schlüssel")])
def test_what_makes_no_header_is_refused(line: str, key: str | None) -> None:
    with pytest.raises(LoadTestError):
        plan.headers([line], key)
