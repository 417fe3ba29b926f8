"""The backend of an app, which signs the tokens of its users."""

import json
import os
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

ALGORITHMS = ("EdDSA", "ES256", "HS256")


class Backend:
    """A backend with one key for each algorithm, and the file of their public keys for the server."""

    def __init__(self, file: Path, algorithms: tuple[str, ...] = ALGORITHMS, prefix: str = "") -> None:
        self.file = file
        self.keys: dict[str, Any] = {}
        self.jwks: list[dict[str, Any]] = []
        for algorithm in algorithms:
            self.add(f"{prefix}{algorithm}", algorithm)
        self.write()

    def add(self, kid: str, algorithm: str) -> None:
        """Make a key. The server knows it after `write`."""
        if algorithm == "EdDSA":
            private: Any = ed25519.Ed25519PrivateKey.generate()
            public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
        elif algorithm == "ES256":
            private = ec.generate_private_key(ec.SECP256R1())
            public = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
        else:
            private = os.urandom(32)
            public = {"kty": "oct", "k": urlsafe_b64encode(private).decode().rstrip("=")}
        self.keys[kid] = (algorithm, private)
        self.jwks.append({"kid": kid, **public})

    def write(self) -> None:
        self.file.write_text(json.dumps({"keys": self.jwks}))
        self.file.chmod(0o600)

    def token(self, user_id: object = 1, kid: str = "EdDSA", header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token of a user for ten minutes. `claims` replace the usual ones; None leaves one out."""
        algorithm, private = self.keys[kid]
        now_s = int(time.time())
        all_claims = {"sub": str(user_id), "iat": now_s, "exp": now_s + 600, **claims}
        kept = {name: value for name, value in all_claims.items() if value is not None}
        return jwt.api_jws.encode(json.dumps(kept).encode(), private, algorithm, headers={"kid": kid, **(header or {})})

    def headers(self, user_id: object = 1, **more: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(user_id, **more)}"}
