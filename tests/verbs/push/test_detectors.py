"""The detectors of detect-secrets: those that are used find their secrets through ours."""

import sys

import pytest
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

from lora_tools.errors import PackageError
from lora_tools.verbs.push.detectors import DECLINED, detected, detectors
from lora_tools.verbs.push.leaks import leaks

MIXED = "aB3xKq9ZtBvN2mPwR4sLdF7y"
HEX = "5f3a9c1e7b2d4860"
SAMPLES = {
    "AWS Access Key": "A3TX" + "QYLPMN5HFIQR7XYA",
    "Azure Storage Account access key": "AccountKey=" + (MIXED * 4)[:86] + "==",
    "Discord Bot Token": "M" + MIXED[:23] + ".G1a2b3." + (MIXED * 2)[:27],
    "GitHub Token": "ghp_" + (MIXED * 2)[:36],
    "GitLab Token": "glpat-" + MIXED[:20],
    "Mailchimp Access Key": HEX * 2 + "-us21",
    "PyPI Token": "pypi-" + "AgEIcHlwaS5vcmc" + MIXED * 3,
    "SendGrid API Key": "SG." + MIXED[:22] + "." + (MIXED * 2)[:43],
    "Slack Token": "xoxb-" + "123456789012-abcdef1",
    "Square OAuth Secret": "sq0csp-" + (MIXED * 2)[:43],
    "Stripe Access Key": "sk_" + "live_" + MIXED,
    "Telegram Bot Token": "123456789:" + (MIXED * 2)[:35],
    "Twilio API Key": "SK" + HEX * 2,
}


@pytest.mark.parametrize("name", SAMPLES)
def test_each_finds_its_secret(name):
    text = f"a = '{SAMPLES[name]}'"
    assert name in {found for found, _, _ in detected(text)}
    (leak,) = leaks("notes.txt", text.encode())
    assert SAMPLES[name] not in str(leak)


def test_every_detector_is_used_or_declined_with_a_reason():
    there = {kind.__name__ for kind in get_mapping_from_secret_type_to_class().values()}
    assert there >= set(DECLINED)
    assert set(detectors()) == set(SAMPLES)
    assert len(detectors()) + len(DECLINED) == len(there)


@pytest.mark.parametrize("name", ["AWS Access Key", "Twilio API Key", "Telegram Bot Token"])
def test_the_middle_of_a_longer_word_is_none(name):
    assert list(detected(f"aa{SAMPLES[name]}aa")) == []


def test_nothing_is_published_unsearched(monkeypatch):
    detectors.cache_clear()
    monkeypatch.setitem(sys.modules, "detect_secrets.core.plugins.util", None)
    with pytest.raises(PackageError, match="detect-secrets") as raised:
        leaks("notes.txt", b"text")
    assert "pip install" in raised.value.__notes__[0]
