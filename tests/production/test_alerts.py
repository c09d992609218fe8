"""The alert rules by Prometheus's own tools: well-formed, and firing when they should and only then."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, document

pytestmark = pytest.mark.slow

RULES = DEPLOY / "prometheus" / "alerts.yml"
CASES = Path(__file__).with_name("alerts_test.yml")


def promtool(*arguments: str) -> str:
    """What promtool prints. Fails where it does."""
    ran = subprocess.run(["promtool", *arguments], cwd=CASES.parent, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_rules_are_well_formed() -> None:
    assert "rules found" in promtool("check", "rules", str(RULES))


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", CASES.name)


def test_no_alert_is_without_a_case_in_which_it_fires() -> None:
    fires = {
        case["alertname"] for test in document(CASES)["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]
    }
    assert fires == {rule["alert"] for group in document(RULES)["groups"] for rule in group["rules"]}
