"""No release that the image installs has a vulnerability that PyPI knows of."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.production
KNOWN = "requests==2.19.0"  # CVE-2018-18074


def audit(requirements: Path) -> "subprocess.CompletedProcess[str]":
    """As ``make audit`` asks; strict, since a release that cannot be looked up is none that was found sound."""
    command = [sys.executable, "-m", "pip_audit", "--strict", "--disable-pip", "--no-deps", "--progress-spinner", "off"]
    return subprocess.run([*command, "-r", str(requirements)], capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def _service(tmp_path_factory: pytest.TempPathFactory) -> None:
    """PyPI's answers about vulnerabilities: it must know of an old one. Some mirrors and closed networks do not."""
    requirements = tmp_path_factory.mktemp("known") / "requirements.txt"
    requirements.write_text(KNOWN)
    found = audit(requirements)
    if "2.19.0" not in found.stdout:
        pytest.skip(f"nothing is shown: no vulnerabilities can be looked up here ({found.stderr.splitlines()[-1]})")


@pytest.mark.usefixtures("_service")
def test_no_pinned_release_is_known_to_be_vulnerable() -> None:
    found = audit(REPOSITORY / "deploy" / "constraints.txt")
    assert found.returncode == 0, found.stdout + found.stderr
