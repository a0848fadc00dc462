"""The detectors of detect-secrets, beside our own rules."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

from lora_tools.errors import PackageError

if TYPE_CHECKING:
    from detect_secrets.plugins.base import BasePlugin

DECLINED = {
    "ArtifactoryDetector": "any word that begins with APA to APF is one of its keys",
    "Base64HighEntropyString": "hashes, commits and vocabularies are as random as secrets",
    "HexHighEntropyString": "hashes and commits are as random as secrets",
    "KeywordDetector": "names of options in configurations and documentation are its keywords",
    "CloudantDetector": "any 24 letters are its key; our rule for names finds the long ones",
    "IbmCloudIamDetector": "our rule for names finds them, in a tenth of the time",
    "IbmCosHmacDetector": "our rule for names finds them, in a tenth of the time",
    "SoftlayerDetector": "our rule for names finds them, in a tenth of the time",
    "IPPublicDetector": "an address is no secret, and versions look like one",
    "BasicAuthDetector": "our rule passes placeholders over, and is bounded",
    "JwtTokenDetector": "our rule needs no more than the beginning, and is bounded",
    "NpmDetector": "our rule is bounded",
    "OpenAIDetector": "our rule finds the keys of others, too, and is bounded",
    "PrivateKeyDetector": "our rule finds more kinds, and no prose about them",
}
"""Detectors that would refuse what is no secret, or are slower than linear, and why."""


@cache
def detectors() -> Mapping[str, "BasePlugin"]:
    """Return the detectors by what they find; imports them once, about 0.2 s.

    Raises `PackageError` where detect-secrets is not installed: nothing is published unsearched.
    """
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ImportError as error:
        raise PackageError("push needs detect-secrets, which is not installed").hint(
            "Install it with: pip install detect-secrets"
        ) from error
    kinds: Mapping[str, type[BasePlugin]] = get_mapping_from_secret_type_to_class()
    return {name: kind() for name, kind in sorted(kinds.items()) if kind.__name__ not in DECLINED}


def detected(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield what is found and where: only tokens that stand alone, not the middle of a hash."""
    for name, detector in detectors().items():
        for value in set(detector.analyze_string(text)):
            start = text.find(value)
            while start >= 0:
                stop = start + len(value)
                if not (text[start - 1 : start].isalnum() or text[stop : stop + 1].isalnum()):
                    yield name, start, stop
                start = text.find(value, stop)
