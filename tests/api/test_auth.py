from pathlib import Path

import pytest
from pydantic import ValidationError

from app.api.auth import Keys
from app.errors import ModelError, Unauthorized
from app.settings import Settings


def keys(**settings: object) -> Keys:
    return Keys.of(Settings(_env_file=None, **settings))


def test_keys_come_from_the_setting_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the app's\nfrom-file\n\n  spaced  \n")
    accepted = keys(api_keys="from-setting", api_keys_file=file)
    for key in ("from-setting", "from-file", "spaced"):
        accepted.check(key)
    for key in (None, "", "# the app's", "FROM-FILE"):
        with pytest.raises(Unauthorized):
            accepted.check(key)


def test_without_keys_nobody_is_asked() -> None:
    keys().check(None)
    keys().check("whatever")


def test_a_file_without_keys_opens_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(ModelError, match="holds no API key"):
        keys(api_keys_file=file)


def test_separators_alone_open_nothing() -> None:
    with pytest.raises(ValidationError, match="nothing but separators"):
        keys(api_keys=" , ")


def test_a_key_no_header_can_carry_is_refused() -> None:
    with pytest.raises(ModelError, match="printable ASCII"):
        keys(api_keys="schlüssel")


def test_any_of_the_keys_given_will_do() -> None:
    accepted = keys(api_keys="right")
    accepted.check("wrong", " right ")
    with pytest.raises(Unauthorized):
        accepted.check("wrong", None)
