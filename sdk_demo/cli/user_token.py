"""`pocketrank token user`: a user's token, for trying what the app's backend does later.

Errors::

    UserKeyError               not a private key that signs users' tokens; names the file
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

__all__ = ["UserKeyError", "user"]

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class UserKeyError(ValueError):
    """Not a private key that signs users' tokens. The message names the file and never holds the key."""


def user(
    user_id: Annotated[str, typer.Argument(help="The one user for whom the token speaks, as the team names users.")],
    key: Annotated[Path, typer.Option(help="Private key as a JSON Web Key (Ed25519); created if it does not exist.")],
    keys: Annotated[
        Path | None, typer.Option(help="File that `pocketrank serve --user-keys` reads; the public key is added to it.")
    ] = None,
    expires_s: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds until the token expires.")] = 600.0,
    audience: Annotated[str | None, typer.Option(help="Claim `aud`, as `serve --user-audience`. [default: none]")] = None,
    issuer: Annotated[str | None, typer.Option(help="Claim `iss`, as `serve --user-issuer`. [default: none]")] = None,
) -> None:
    """Sign a token that speaks for one user, as the app's backend does, and print it. For trying a server.

    \b
    pocketrank token user 7 --key backend.jwk --keys user-keys.json
    pocketrank serve --run runs/world --user-keys user-keys.json
    pocketrank token user 7 --key backend.jwk

    Writes the private key, readable by you only, if it does not exist, and adds its public key to the file of keys.
    """
    import jwt

    from pocketrank.device.contract import as_code

    as_code(user_id, "USER_ID")
    private = _private_key(key)
    if keys is not None:
        _add_public_key(keys, private)
    now_s = time.time()
    claims: dict[str, Any] = {"sub": user_id, "iat": int(now_s), "exp": int(now_s + expires_s)}
    claims |= {name: value for name, value in (("aud", audience), ("iss", issuer)) if value is not None}
    signing_key = jwt.PyJWK(private, "EdDSA")
    typer.echo(jwt.encode(claims, signing_key.key, "EdDSA", {"kid": private["kid"]}))


def _private_key(path: Path) -> dict[str, Any]:
    """Return the private key at `path`, which is made if it does not exist. Raises `UserKeyError`."""
    try:
        if not path.exists():
            _write_new_key(path)
        if os.name == "posix" and path.stat().st_mode & _OTHERS:
            raise UserKeyError(f"Expected a key that only its owner may read (chmod 600), got one that others may - at {path}")
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise UserKeyError(f"Expected a private key, got: {error.strerror or type(error).__name__} - at {path}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserKeyError(f"Expected a private key as a JSON Web Key, got other content - at {path}") from error
    if found.get("crv") != "Ed25519" or not all(isinstance(found.get(name), str) for name in ("kid", "x", "d")):
        raise UserKeyError(f"Expected a private Ed25519 key with a `kid`, got another JSON - at {path}")
    return found


def _write_new_key(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from jwt.algorithms import OKPAlgorithm

    made = {"kid": secrets.token_hex(8), **OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate(), as_dict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    # O_EXCL never overwrites a key, and the mode at creation leaves no moment in which others can read it.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")


def _add_public_key(path: Path, private: dict[str, Any]) -> None:
    """Add the public half of the key to a JSON Web Key Set, unless it is there. Raises `TokenFileError`, `UserKeyError`."""
    from pocketrank.cloud.files import write_atomically
    from pocketrank.cloud.serving.access.secret_file import read_secret_file

    public = {name: private[name] for name in ("kid", "kty", "crv", "x")}
    try:
        found = msgspec.json.decode(read_secret_file(path, "a file of keys")[0], type=dict[str, Any]) if path.exists() else {}
        known = found.get("keys", [])
        if any(one.get("kid") == public["kid"] for one in known):
            return
        data = msgspec.json.encode({**found, "keys": [*known, public]})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(data, indent=2) + b"\n", 0o600)
    except OSError as error:
        raise UserKeyError(f"Expected a file of keys that can be written, got: {error.strerror} - at {path}") from error
    except (msgspec.DecodeError, RecursionError, TypeError, AttributeError) as error:
        raise UserKeyError(f"Expected a JSON Web Key Set, got other content - at {path}") from error
