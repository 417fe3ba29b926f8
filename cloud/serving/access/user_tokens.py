"""Tokens bound to one user: short-lived JWTs (RFC 7519) that the app's backend signs, and the keys that verify them.

The file is a JSON Web Key Set (RFC 7517) and is read again when it has changed. A token names its key by `kid`. So keys are
rotated without a restart: add the new key, let the backend sign with it, and remove the old one when its last token has
expired. A key verifies one algorithm, which the file decides and not the token: EdDSA (Ed25519) and ES256 have public keys
here, HS256 has the secret itself, so only those two leave the server unable to sign.

::

    {"keys": [{"kid": "2026-03", "kty": "OKP", "crv": "Ed25519", "x": "…"}]}

Claims: `sub` is the user id, in decimal where ids are whole numbers, and `exp` the expiry, both required; `nbf` and `iat` are
held if they are there, `aud` and `iss` as the configuration says. Any other claim is ignored.

Errors::

    WireError
    └── AuthError              401: no valid token. No message holds a part of it
    TokenFileError             not a file of keys, missing, unreadable, or accessible to others; names the file
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from time import monotonic, time
from typing import Annotated, Any, NamedTuple

import jwt
import msgspec

from pocketrank.cloud.serving.access.limits import TokenScope
from pocketrank.cloud.serving.access.secret_file import SecretFile, TokenFileError
from pocketrank.cloud.serving.access.tokens import AuthError, AuthReason
from pocketrank.cloud.serving.access.user_keys import UserKeysConfig
from pocketrank.device.contract import ID_TEXT_MAX

__all__ = ["ALGORITHMS", "UserKeyFile", "UserToken"]

ALGORITHMS = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256", ("oct", None): "HS256"}
"""Algorithm of a key by its `kty` and `crv`."""

_SCHEME = b"bearer "
_BYTES_MAX = 4096
"""Longest `Authorization` header. A token of ours has some 200 bytes, and anybody may make the server parse one."""
_SECRET_BYTES_MIN = 32
"""Shortest HS256 secret: RFC 7518 (3.2) asks for the size of the hash."""
_VERIFIED_MAX = 16_384
"""Verified tokens in memory, some 5 MB. A signature takes 60 to 200 µs, a look-up two."""
_USER_ID = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = 1 << 63
_EXPECTED_KEY = "an Ed25519, P-256 or oct key with a `kid`"
_EXPECTED_TOKEN = "a valid token of the app's backend"


class UserToken(NamedTuple):
    """A verified token."""

    user_id: int | str
    """A text where the ids of users are texts."""
    expires_s: float
    """Unix time from which it is refused, in seconds; the leeway is part of it."""


class _Key(msgspec.Struct, frozen=True):
    """A key of the set. Other members are optional in the standard and have no effect here."""

    kid: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    kty: str
    crv: str | None = None
    alg: str | None = None
    use: str | None = None
    d: object = None
    """The private part of a key pair, which has no business on a server that verifies."""


class _KeySet(msgspec.Struct, frozen=True):
    keys: tuple[msgspec.Raw, ...]


class UserKeyFile(SecretFile[dict[str, jwt.PyJWK]]):
    """The current keys of the file, as `SecretFile` reads it. Raises `TokenFileError`.

    What was verified is remembered until it expires or the keys change, so that a token costs one signature and not one for
    every request.
    """

    _holds = "key"

    def __init__(
        self,
        config: UserKeysConfig,
        *,
        check_every_s: float = 1.0,
        clock: Callable[[], float] = time,
        ticks: Callable[[], float] = monotonic,
    ) -> None:
        self.config, self._texts = config, False
        self._verified: OrderedDict[bytes, UserToken] = OrderedDict()  # by digest: no token stays in memory
        super().__init__(config.file, check_every_s=check_every_s, clock=clock, ticks=ticks)

    def accept_texts(self, texts: bool) -> None:
        """Say whether the ids of users are texts. By default they are whole numbers."""
        if texts != self._texts:
            self._texts = texts
            self._verified.clear()

    def check(self, authorization: bytes | None, scope: TokenScope) -> UserToken:
        """Return the user's token in this `Authorization` header. It allows `device` and nothing else. Raises `AuthError`."""
        self._refresh_in_time()
        if not authorization:
            raise AuthError("missing", "a token: `Authorization: Bearer …`", "none", scope)
        if len(authorization) > _BYTES_MAX or authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise AuthError("malformed", f"`Bearer <token>` of at most {_BYTES_MAX} bytes", "something else", scope)
        digest = sha256(authorization[len(_SCHEME) :]).digest()
        token = self._verified.get(digest)
        if token is None:
            token = self._verify(authorization[len(_SCHEME) :], scope)
            while len(self._verified) >= _VERIFIED_MAX:
                self._verified.popitem(last=False)
            self._verified[digest] = token
        elif self._clock() >= token.expires_s:
            raise AuthError("expired", _EXPECTED_TOKEN, "one that expired", scope)
        if scope != "device":
            raise AuthError("scope", f"a token with the scope `{scope}`", "one of a user", scope)
        return token

    def _verify(self, token: bytes, scope: TokenScope) -> UserToken:
        config = self.config
        try:
            key = self._content.get(jwt.get_unverified_header(token).get("kid", ""))
            if key is not None:
                claims = jwt.decode(
                    token,
                    key,
                    algorithms=[key.algorithm_name],
                    audience=config.audience,
                    issuer=config.issuer,
                    leeway=config.leeway_s,
                    options={"require": ["exp", "sub"]},
                )
                user_id, expires_s = _user_id(claims["sub"], self._texts), float(claims["exp"])
        except jwt.ExpiredSignatureError as error:
            raise AuthError("expired", _EXPECTED_TOKEN, "one that expired", scope) from error
        except jwt.DecodeError as error:
            reason: AuthReason = "wrong" if isinstance(error, jwt.InvalidSignatureError) else "malformed"
            raise AuthError(reason, _EXPECTED_TOKEN, "one that is not", scope) from error
        except jwt.InvalidTokenError as error:  # a claim that is missing, early, or for another
            raise AuthError("wrong", _EXPECTED_TOKEN, _claim_of(error), scope) from error
        except (ValueError, OverflowError, TypeError, RecursionError) as error:  # JSON that is none of a token
            raise AuthError("malformed", _EXPECTED_TOKEN, "one that is not", scope) from error
        if key is None:
            raise AuthError("wrong", _EXPECTED_TOKEN, "one with no `kid` of the server's keys", scope)
        if user_id is None:
            expected = f"of 1 to {ID_TEXT_MAX} characters" if self._texts else "of 64 signed bits in decimal"
            raise AuthError("wrong", f"a token whose `sub` is a user id {expected}", "another `sub`", scope)
        longest_s = config.lifetime_max_s + config.leeway_s
        if expires_s - self._clock() > longest_s:
            raise AuthError("wrong", f"a token that expires within {longest_s:g} s", "one that lasts longer", scope)
        return UserToken(user_id, expires_s + config.leeway_s)

    def _decode(self, data: bytes) -> dict[str, jwt.PyJWK]:
        found: dict[str, jwt.PyJWK] = {}
        try:
            keys = msgspec.json.decode(data, type=_KeySet).keys
        except (msgspec.DecodeError, RecursionError) as error:
            raise TokenFileError(self._path, "a JSON Web Key Set", str(error)) from error
        for i, raw in enumerate(keys):
            kid, key = self._key(raw, f"{self._path}, $.keys[{i}]")
            if kid in found:
                raise TokenFileError(self._path, "each `kid` once", f"two keys `{kid}`")
            found[kid] = key
        self._verified.clear()  # a key may have been removed
        return found

    def _key(self, raw: msgspec.Raw, where: str) -> tuple[str, jwt.PyJWK]:
        try:
            key, members = msgspec.json.decode(raw, type=_Key), msgspec.json.decode(raw, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise TokenFileError(where, _EXPECTED_KEY, str(error)) from error
        algorithm = ALGORITHMS.get((key.kty, key.crv))
        if algorithm is None or key.alg not in (None, algorithm):
            raise TokenFileError(where, _EXPECTED_KEY, f"kty `{key.kty[:32]}`, crv `{key.crv}`, alg `{key.alg}`")
        if key.use not in (None, "sig"):
            raise TokenFileError(where, "a key whose use is `sig`", f"`{key.use[:32]}`")
        if key.d is not None:
            raise TokenFileError(where, "a public key", "a private one, with `d`; it belongs to the backend alone")
        try:
            made = jwt.PyJWK(members, algorithm)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
            # Without the text of the error: it may hold the secret of an HS256 key.
            raise TokenFileError(where, _EXPECTED_KEY, f"members that make none ({type(error).__name__})") from None
        if algorithm == "HS256" and len(made.key) < _SECRET_BYTES_MIN:
            raise TokenFileError(where, f"a secret of {_SECRET_BYTES_MIN} bytes at least", f"{len(made.key)}")
        return key.kid, made


def _user_id(subject: Any, texts: bool) -> int | str | None:
    if texts and isinstance(subject, str):
        return subject if 1 <= len(subject) <= ID_TEXT_MAX else None
    if not isinstance(subject, str) or _USER_ID.fullmatch(subject) is None:
        return None
    user_id = int(subject)
    return user_id if -_INT64 <= user_id < _INT64 else None


def _claim_of(error: jwt.InvalidTokenError) -> str:
    match error:
        case jwt.MissingRequiredClaimError():
            return f"one without `{error.claim}`"
        case jwt.InvalidAudienceError():
            return "one for another `aud`"
        case jwt.InvalidIssuerError():
            return "one of another `iss`"
        case jwt.ImmatureSignatureError():
            return "one that is not valid yet"
        case _:
            return "one that is not"
