"""`gateway token`, and what `check` says of tokens and authentication."""

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.config import Tokens
from gateway.tokens import token_reader
from gateway.watched import Files
from tests.test_cli import gateway
from tests.test_tokens import private_pem, public_pem

SECRET = "0123456789abcdef0123456789abcdef"
ENVIRON = {"GATEWAY_TOKEN_SECRET": SECRET}


def test_prints_one_line_that_the_gateway_takes() -> None:
    arguments = ("--room", "AC4178234411", "--room", "wxa_student_*", "--sub", "alice", "--aud", "gw", "--iss", "me")
    done = gateway("token", *arguments, "--ttl", "30m", environ=ENVIRON)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    reader = token_reader(Tokens(algorithm="HS256", audience="gw", issuer="me", leeway_s=0), ENVIRON, Files())
    assert reader is not None
    grant = reader.read(done.stdout.strip())
    assert (grant.rooms, grant.subject) == (("AC4178234411", "wxa_student_*"), "alice")
    assert 1700 < grant.expires_at - time.time() <= 1800


def test_signs_with_a_private_key(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "private.pem").write_bytes(private_pem(key))
    (tmp_path / "public.pem").write_bytes(public_pem(key))
    done = gateway("token", "--room", "AC1", "--key", tmp_path / "private.pem", "--kid", "1")
    assert done.returncode == 0
    settings = Tokens(algorithm="ES256", key_file=str(tmp_path / "public.pem"), leeway_s=0)
    reader = token_reader(settings, {}, Files())
    assert reader is not None
    grant = reader.read(done.stdout.strip())
    assert grant.subject == ""
    assert 3500 < grant.expires_at - time.time() <= 3600, "an hour, without --ttl"


@pytest.mark.parametrize(
    ("arguments", "secret", "problem"),
    [
        (["--room", "AC1"], "", "environment GATEWAY_TOKEN_SECRET: missing, expected the secret of the tokens"),
        (["--room", "AC1"], "geheim", "environment GATEWAY_TOKEN_SECRET: expected at least 32 bytes, got 6"),
        (["--room", "a*b*c*"], SECRET, "--room: expected 1 to 64 room names, or patterns with at most two *"),
        (["--room", ""], SECRET, "--room: expected 1 to 64 room names, or patterns with at most two *"),
        (["--room", "AC1", "--key", "none.pem"], SECRET, "none.pem: cannot be read: No such file or directory"),
        (["--room", "AC1", "--secret-env", "OTHER"], SECRET, "environment OTHER: missing, expected the secret"),
    ],
)
def test_what_cannot_be_signed(arguments: list[str], secret: str, problem: str) -> None:
    done = gateway("token", *arguments, environ={"GATEWAY_TOKEN_SECRET": secret})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(problem)
    assert "geheim" not in done.stderr


@pytest.mark.parametrize("ttl", ["0", "0h", "-1", "1w", "h", "1.5h", ""])
def test_a_time_must_be_one(ttl: str) -> None:
    done = gateway("token", "--room", "AC1", "--ttl", ttl, environ=ENVIRON)
    assert done.returncode == 2
    assert "expected a time such as 90s, 15m, 8h or 7d" in done.stderr


def test_check_prints_every_problem_of_keys_and_tokens(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(f'[auth]\nmode = "file"\nfile = "{tmp_path}/none"\n[tokens]\nalgorithm = "HS256"\n')
    done = gateway("check", "--config", path)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        [
            "environment GATEWAY_PEPPER: missing, expected the secret of the hashes",
            f"auth.file: {tmp_path}/none: cannot be read: No such file or directory",
            "environment GATEWAY_TOKEN_SECRET: missing, expected the secret of the tokens",
        ],
    )
    path.write_text('[auth]\nmode = "http"\n[tokens]\nalgorithm = "ES256"\n')
    assert gateway("check", "--config", path).stderr.splitlines() == [
        'auth.url: missing, expected where keys are checked because auth.mode is "http"',
        'tokens.key_file: missing, expected the public key because tokens.algorithm is "ES256"',
    ]
