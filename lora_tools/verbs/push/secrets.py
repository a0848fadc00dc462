"""What a secret looks like: our rules, as data."""

import re
from typing import NamedTuple


class SecretRule(NamedTuple):
    """One kind of secret."""

    name: str
    marks: tuple[str, ...]
    """Lower-case text, one of which every match contains: a quick search rules most texts out."""
    pattern: re.Pattern[str]
    """Its group ``secret``, or else all of it, must not be shown. Every repetition is bounded."""
    fix: str
    """Where it is revoked, for it has to be: a file on this machine may not be its only copy."""


def _rule(name: str, marks: str, pattern: str, fix: str) -> SecretRule:
    return SecretRule(name, tuple(marks.split()), re.compile(pattern), fix)


ALONE = r"(?<![A-Za-z0-9])"
ENDS = r"(?![A-Za-z0-9])"
ASSIGNED = r"[\"']?[ \t]{0,4}[:=][ \t]{0,4}[\"']?"
NAMES = (
    "passwd",
    "password",
    *(
        f"{whose}{between}{what}"
        for whose in ("api", "access", "auth", "secret", "private", "account", "client")
        for between in ("", "_", "-")
        for what in ("key", "token", "secret")
    ),
)
NAMED = r"[yntdYNTD](?=[\"']?[ \t]{0,4}[:=])(?i:" + "|".join(f"(?<={name})" for name in NAMES) + ")"
"""Looked for from their last letters: where a sign follows, of which there are few."""

RULES = (
    _rule(
        "a Hugging Face token",
        "hf_ api_org_",
        ALONE + r"(?:hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{30,})",
        "revoke it at https://huggingface.co/settings/tokens",
    ),
    _rule(
        "an AWS key",
        "akia asia abia acca",
        ALONE + r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}" + ENDS,
        "deactivate it in the IAM console",
    ),
    _rule(
        "an AWS secret",
        "aws",
        r"(?i:aws[\w.-]{0,20}(?:secret|access)[\w.-]{0,20})" + ASSIGNED + r"(?P<secret>"
        r"[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
        "deactivate the key that it belongs to in the IAM console",
    ),
    _rule(
        "an API key",
        "sk-",
        ALONE + r"sk-(?=[A-Za-z_-]{0,80}[0-9])[A-Za-z0-9_-]{20,}",
        "revoke it where it was made: OpenAI, Anthropic, OpenRouter or DeepSeek",
    ),
    _rule(
        "a GitHub token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        ALONE + r"(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
        "revoke it at https://github.com/settings/tokens",
    ),
    _rule(
        "a GitLab token",
        "glpat- gldt- glrt- glcbt- glptt- glft- glsoat- glimt- glagent-",
        ALONE + r"gl(?:pat|dt|rt|cbt|ptt|ft|soat|imt|agent)-[A-Za-z0-9_-]{20,}",
        "revoke it under Access tokens in GitLab",
    ),
    _rule(
        "a Slack token",
        "xoxa- xoxb- xoxe- xoxo- xoxp- xoxr- xoxs- xapp- hooks.slack.com/",
        ALONE + r"(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}"
        r"|hooks\.slack\.com/services/T\w{5,}/B\w{5,}/\w{10,}",
        "revoke it under https://api.slack.com/apps",
    ),
    _rule(
        "a Discord webhook",
        "/api/webhooks/",
        r"discord(?:app)?\.com/api/webhooks/[0-9]{10,20}/[A-Za-z0-9_-]{20,}",
        "delete it under Integrations in Discord",
    ),
    _rule(
        "a Google key",
        "aiza gocspx- ya29.",
        ALONE + r"(?:AIza[0-9A-Za-z_-]{35}|GOCSPX-[A-Za-z0-9_-]{20,}|ya29\.[A-Za-z0-9_-]{30,})",
        "delete it under Credentials in the Google Cloud console",
    ),
    _rule(
        "a private key",
        "-----begin putty-user-key-file- age-secret-key-1",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[0-9]"
        r"|AGE-SECRET-KEY-1[A-Z0-9]{50,}",
        "make a new one, and take its public key off every server and list",
    ),
    _rule(
        "a Weights & Biases key",
        "wandb wandb_v1_",
        ALONE + r"(?i:wandb)(?:_v1_[A-Za-z0-9_]{60,}|"
        r"(?i:[^\n]{0,60}?(?:key|login|password))[\"']?[ \t:=(,]{1,6}[\"']?"
        r"(?P<secret>[0-9a-f]{40}))" + ENDS,
        "revoke it at https://wandb.ai/settings",
    ),
    _rule(
        "a Stripe key",
        "sk_live_ rk_live_ sk_test_ rk_test_ whsec_",
        ALONE + r"(?:[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/]{24,})",
        "roll it at https://dashboard.stripe.com/apikeys",
    ),
    _rule(
        "an npm token",
        "npm_ _authtoken",
        ALONE + r"npm_[A-Za-z0-9]{36}" + ENDS + r"|:_authToken[ \t]{0,4}=[ \t]{0,4}"
        r"(?P<secret>[A-Za-z0-9+/=_-]{20,})",
        "revoke it with `npm token revoke`",
    ),
    _rule(
        "a PyPI token",
        "pypi-age",
        ALONE + r"pypi-AgE[A-Za-z0-9_-]{50,}",
        "revoke it at https://pypi.org/manage/account",
    ),
    _rule(
        "a Groq key",
        "gsk_",
        ALONE + r"gsk_[A-Za-z0-9]{40,}",
        "revoke it at https://console.groq.com/keys",
    ),
    _rule(
        "a Replicate token",
        "r8_",
        ALONE + r"r8_[A-Za-z0-9]{37,40}" + ENDS,
        "revoke it at https://replicate.com/account/api-tokens",
    ),
    _rule(
        "a token of a GPU or model host",
        "nvapi- rpa_ tgp_v1_ xai- pplx- dop_v1_ dapi",
        ALONE + r"(?:nvapi-[A-Za-z0-9_-]{60,}|rpa_[A-Z0-9]{40,}|tgp_v1_[A-Za-z0-9_-]{40,}"
        r"|xai-[A-Za-z0-9]{60,}|pplx-[A-Za-z0-9]{40,}|dop_v1_[0-9a-f]{64}|dapi[0-9a-f]{32})" + ENDS,
        "revoke it where it was made",
    ),
    _rule(
        "a Kaggle key",
        '"key"',
        r'"username"[ \t]{0,4}:[^\n]{1,80}"key"[ \t]{0,4}:[ \t]{0,4}"(?P<secret>[0-9a-f]{32})"',
        "make a new one at https://www.kaggle.com/settings",
    ),
    _rule(
        "a JSON Web Token",
        "eyj",
        ALONE + r"eyJ[A-Za-z0-9_-]{10,200}\.eyJ[A-Za-z0-9_-]{10,}",
        "end the session or revoke the grant that it stands for",
    ),
    _rule(
        "a password in a URL",
        "://",
        r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s:/?#@\"'`<>{}$\\]{0,64}:"
        r"(?P<secret>[^\s/@\"'`<>{}$*\\]{3,128})@[A-Za-z0-9]",
        "change the password",
    ),
    _rule(
        "a bearer token",
        "bearer",
        r"(?i:\bbearer)[ \t]{1,4}(?=[A-Za-z._~+/-]{0,60}[0-9])(?P<secret>[A-Za-z0-9._~+/-]{20,})",
        "revoke it where it was made",
    ),
    _rule(
        "a secret by its name",
        "key secret token password passwd",
        NAMED + ASSIGNED + r"(?=[A-Za-z_+/.=-]{0,80}[0-9])"
        r"(?=[0-9_+/.=-]{0,80}"
        r"[A-Za-z])(?P<secret>[A-Za-z0-9_+/=.-]{20,})",
        "revoke or change it where it was made",
    ),
    _rule(
        "a secret of an environment",
        "secret= token= password= passwd= key=",
        r"(?m:^)[ \t]{0,8}(?:export |set )?[A-Z0-9_]{0,60}(?:SECRET|TOKEN|PASSWORD|PASSWD|API_KEY)="
        r"[\"']?(?=[^\s\"'0-9]{0,80}[0-9])(?=[^\s\"'A-Za-z]{0,80}[A-Za-z])"
        r"(?P<secret>[^\s\"'`$<>{}%*()]{8,})",
        "revoke or change it where it was made",
    ),
)

PLACEHOLDER = re.compile(
    r"[xX]{5}|[*.•…]{4}|(?:^|[_-])(?:your|my)[_-]"
    r"|^(?:pass(?:w(?:or)?d)?|pwd|secret|(?:api_?)?key|token|port|[0-9]{1,5})$",
    re.IGNORECASE,
)
"""What stands where a secret would: in documentation, it is no secret."""
