"""Each rule finds its secret, and ignores what looks nearly like it."""

import pytest

from lora_tools.verbs.push.leaks import leaks
from lora_tools.verbs.push.secrets import RULES

MIXED = "aB3xKq9ZtBvN2mPwR4sLdF7y"
HEX = "5f3a9c1e7b2d4860"

# Put together here, lest a scanner of this repository takes them for real ones.
FOUND = {
    "a Hugging Face token": ["hf_" + MIXED * 2, "api_org_" + "aBcDeFgHiJkL" * 3],
    "an AWS key": ["AKIA" + "QYLPMN5HFIQR7XYA", "key: ASIA" + "QYLPMN5HFIQR7XYA."],
    "an AWS secret": [
        "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYzKq8LmNp0T",
        '"AWS_SECRET_ACCESS_KEY": "' + "wJalrXUtnFEMI+K7MDENG/" + 'bPxRfiCYzKq8LmNp0T"',
    ],
    "an API key": ["sk-" + MIXED * 2, "sk-ant-api03-" + MIXED * 3, "sk-or-v1-" + HEX * 4],
    "a GitHub token": ["ghp_" + "a1" * 18, "github_pat_" + "a1" * 20],
    "a GitLab token": ["glpat-" + MIXED, "gldt-" + MIXED],
    "a Slack token": [
        "xoxb-" + "123456789012-abcdef",
        "https://hooks.slack.com/services/" + "T12345678/B12345678/" + MIXED,
    ],
    "a Discord webhook": ["https://discord.com/api/webhooks/" + "123456789012345678/" + MIXED],
    "a Google key": ["AIza" + "bC3dE" * 7, "GOCSPX-" + MIXED, "ya29." + MIXED * 2],
    "a private key": [
        "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
        "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----",
        "-----BEGIN " + "PRIVATE KEY-----",
        "PuTTY-User-Key-File-" + "3: ssh-ed25519",
        "AGE-SECRET-KEY-1" + "QYLPMN5HFIQR7XYA" * 4,
    ],
    "a Weights & Biases key": [
        "WANDB_API_KEY=" + HEX * 2 + HEX[:8],
        "wandb.login(key='" + HEX * 2 + HEX[:8] + "')",
        "wandb login " + HEX * 2 + HEX[:8],
        "machine api.wandb.ai login user password " + HEX * 2 + HEX[:8],
    ],
    "a Stripe key": ["sk_" + "live_" + MIXED, "rk_" + "test_" + MIXED, "whsec_" + MIXED * 2],
    "an npm token": [
        "npm_" + (MIXED * 2)[:36],
        "//registry.npmjs.org/:_authToken=" + HEX * 2,
    ],
    "a PyPI token": ["pypi-" + "AgEIcHlwaS5vcmc" + MIXED * 3],
    "a Groq key": ["gsk_" + MIXED * 2],
    "a Replicate token": ["r8_" + (MIXED * 2)[:37]],
    "a token of a GPU or model host": ["nvapi-" + MIXED * 3, "xai-" + MIXED * 3],
    "a Kaggle key": ['{"username": "alice", "key": "' + HEX * 2 + '"}'],
    "a JSON Web Token": ["eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0" + ".x"],
    "a password in a URL": [
        "https://alice:" + "hunter2!x@example.org/x",
        "git clone https://oauth2:" + "T0ps3cret@git.example.org/a.git",
        "postgres://" + "admin:" + "pa55@db:5432/x",
        "redis://:" + "s3cr3t@localhost:6379",
    ],
    "a bearer token": ["Authorization: Bearer " + MIXED],
    "a secret by its name": [
        "api_key = '" + MIXED + "'",
        '"access_token": "' + MIXED + '"',
        "CIVITAI_API_KEY: " + HEX * 2,
    ],
    "a secret of an environment": [
        "export DB_PASSWORD=" + "hunter2-and-more",
        "CIVITAI_TOKEN=" + "a1b2c3d4e5",
    ],
}
LEFT_ALONE = {
    "a Hugging Face token": ["hf_hub_download", "hf_" + "xxxxxx" * 6, "chf_" + MIXED * 2],
    "an AWS key": ["AKIA", "XAKIA" + "QYLPMN5HFIQR7XYA", "AKIA" + "QYLPMN5HFIQR7XYABC"],
    "an AWS secret": ["aws commit " + HEX * 2 + HEX[:8], "aws_secret_access_key = os.environ['X']"],
    "an API key": ["task-force-of-twenty-people-and-more", "sk-toggleable__label-arrow-inside"],
    "a GitHub token": ["ghp_short", "github_pat_"],
    "a GitLab token": ["glpat-YOUR-TOKEN", "gltf-loader-of-many-meshes"],
    "a Slack token": ["xoxb-", "https://hooks.slack.com/services/T/B/x"],
    "a Discord webhook": ["https://discord.com/api/webhooks/ID/TOKEN"],
    "a Google key": ["AIza", "ya29."],
    "a private key": ["-----BEGIN PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----", "PRIVATE KEY"],
    "a Weights & Biases key": [
        "wandb: commit " + HEX * 2 + HEX[:8],
        "wandb run https://wandb.ai/alice/lora/runs/1a2b3c4d",
        "WANDB_API_KEY=$WANDB_API_KEY",
    ],
    "a Stripe key": ["sk_live_", "risk_" + "live_" + "short"],
    "an npm token": ["npm_config_registry", ":_authToken=${NPM_TOKEN}"],
    "a PyPI token": ["pypi-AgE", "pypi-release"],
    "a Groq key": ["gsk_short"],
    "a Replicate token": ["r8_pipeline", "r8_" + MIXED],
    "a token of a GPU or model host": ["nvapi-key", "xai-grok", "dapile"],
    "a Kaggle key": ['{"username": "alice", "key": "conv_in"}'],
    "a JSON Web Token": ["eyJ", "eyJhbGciOi.weights"],
    "a password in a URL": [
        "https://user:password@example.org",
        "https://alice:<token>@example.org",
        "https://oauth2:${TOKEN}@example.org",
        "http://localhost:8000/v1",
        "https://example.org/a:b@c",
        "git+https://github.com/a/b.git@v1",
    ],
    "a bearer token": ["Authorization: Bearer $TOKEN", "bearer of good news", "Bearer YOUR_TOKEN"],
    "a secret by its name": [
        'api_key="your-api-key-goes-here-0"',
        "access_token: Optional[str] = None",
        'auth_token = "read_from_the_environment"',
        'api_key = "XXXXXXXXXXXXXXXXXXXXXXX0"',
    ],
    "a secret of an environment": [
        "HF_TOKEN=$(cat token)",
        "MAX_TOKEN=4096",
        "PAD_TOKEN=<pad>",
        "TOKEN=",
        "if PAD_TOKEN == x1234567:",
    ],
}
HASHES = [
    "sha256:" + HEX * 4,
    "oid sha256:" + HEX * 4,
    "commit " + HEX * 2 + HEX[:8],
    '"sshs_model_hash": "' + HEX * 4 + '"',
    '"sshs_legacy_hash": "' + HEX[:8] + '"',
    "sha256-" + "Kq9ZtBvN2mPwR4sLdF7yaB3xKq9ZtBvN2mPwR4sLdF7=",
    "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA/home/AAAA" + MIXED * 9,
    '"YWxpY2U=": 1234, "aB3xKq9ZtBvN2mPwR4sLdF7y": 1235,',
    "pad_token: <|endoftext|>",
    '"bos_token": "<|begin_of_text|>", "eos_token_id": 128001',
]


def pairs(table):
    return [(name, text) for name, texts in table.items() for text in texts]


@pytest.mark.parametrize(("name", "text"), pairs(FOUND))
def test_a_secret_is_found_named_and_cut_short(name, text):
    (leak,) = leaks("notes.txt", f"first\n{text}\n".encode())
    assert (leak.kind, leak.place) == (name, "line 2")
    assert leak.fix
    assert leak.shown.endswith("…")
    assert len(leak.shown) <= 7


@pytest.mark.parametrize(("name", "text"), pairs(LEFT_ALONE))
def test_what_looks_nearly_like_it_is_left_alone(name, text):
    assert leaks("notes.txt", f"first\n{text}\n".encode()) == []


@pytest.mark.parametrize("text", HASHES)
def test_hashes_and_vocabularies_are_no_secrets(text):
    assert leaks("notes.txt", text.encode()) == []


def test_every_rule_has_a_sample_and_a_near_miss():
    names = [rule.name for rule in RULES]
    assert list(FOUND) == list(LEFT_ALONE) == names


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_marks_of_a_rule_are_in_all_that_it_finds(rule):
    for text in FOUND[rule.name]:
        assert rule.pattern.search(text)
        assert any(mark in text.lower() for mark in rule.marks)
    assert all(mark == mark.lower() for mark in rule.marks)
