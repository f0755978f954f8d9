"""The authenticator that the settings name."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from gateway import keyfile
from gateway.auth.base import Authenticator, OpenAuthenticator
from gateway.auth.cache import Verdicts
from gateway.auth.file import FileAuthenticator, revoked
from gateway.auth.http import HttpAuthenticator, Service
from gateway.config import Auth
from gateway.settings import ConfigError
from gateway.watched import Files, Watched


def authenticator(
    auth: Auth, environ: Mapping[str, str], files: Files, revoke: Callable[[Collection[str]], None]
) -> Authenticator | None:
    """Who checks keys; None where the broker does, by the link of each device.

    Args:
        files: where a file of keys is to be watched.
        revoke: told of serials whose key is no good any more.

    Raises:
        ConfigError: with every problem there is.
    """
    match auth.mode:
        case "open":
            return OpenAuthenticator()
        case "file":
            return _file(auth, environ, files, revoke)
        case "http":
            return _http(auth, environ)
    return None


def _file(
    auth: Auth, environ: Mapping[str, str], files: Files, revoke: Callable[[Collection[str]], None]
) -> FileAuthenticator:
    pepper = environ.get(auth.pepper_env, "")
    problems = [] if pepper else [f"environment {auth.pepper_env}: missing, expected the secret of the hashes"]
    try:
        hashes = Watched.load(Path(auth.file), keyfile.read, lambda old, new: revoke(revoked(old, new)))
    except ValueError as problem:
        problems.append(f"auth.file: {problem}")
    if problems:
        raise ConfigError(problems)
    files.watch(hashes)
    return FileAuthenticator(hashes, pepper.encode())


def _http(auth: Auth, environ: Mapping[str, str]) -> HttpAuthenticator:
    token = environ.get(auth.token_env, "") if auth.token_env else ""
    if auth.token_env and not token:
        raise ConfigError([f"environment {auth.token_env}: missing, expected the bearer token for auth.url"])
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError([f"environment {auth.token_env}: expected a bearer token, without blanks"])
    service = Service(auth.url, auth.timeout_s, auth.max_requests, token)
    return HttpAuthenticator(service, Verdicts(auth.cache_s, auth.negative_cache_s, auth.max_cached))
