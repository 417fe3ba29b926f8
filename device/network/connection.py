"""One kept-alive HTTP connection, every answer bounded in time. Apart from `transport`, which an app's start imports: the
libraries below take tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

from pocketrank.device.bundle.files import BundleError
from pocketrank.device.network.errors import BadAnswerError, ClientError, UnreachableError

__all__ = ["Connection"]

_CHUNK = 1 << 16


class Connection:
    """For one exchange at a time. Its errors are http.client's outside of `errors`."""

    def __init__(self, scheme: str, host: str, port: int | None, timeout_s: float) -> None:
        """Nothing is connected yet."""
        self._timeout_s = timeout_s
        self._line = (
            http.client.HTTPConnection(host, port, timeout=timeout_s)
            if scheme == "http"
            else http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
        )

    def close(self) -> None:
        """The next exchange opens it again."""
        self._line.close()

    def send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float
    ) -> http.client.HTTPResponse:
        """The beginning of the answer, whose rest must be read before `deadline` of the monotonic clock."""
        line = self._line
        line.response_class = cast("type[http.client.HTTPResponse]", partial(_Response, deadline=deadline))
        reused = line.sock is not None
        try:
            if reused:
                line.sock.settimeout(self._timeout_s)  # the last answer may have left it short
            line.request(method, path, body, headers)
            return line.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # A server may close an idle connection at any time. Every call can be repeated: events carry ids.
            line.close()
            if not reused:
                raise
        line.request(method, path, body, headers)
        return line.getresponse()

    def parts(self, response: http.client.HTTPResponse, bytes_max: int) -> Iterator[bytes]:
        """The body as it comes, or its first bytes beyond `bytes_max`."""
        size = 0
        while size <= bytes_max:
            part = response.read1(min(_CHUNK, bytes_max + 1 - size))
            if not part:
                # `read1` ends quietly when the server hangs up early.
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)
                response.close()  # `read1` leaves that to us; the connection is then free for the next call
                return
            yield part
            size += len(part)
        self.close()

    @contextlib.contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """Turn what goes wrong within into a `ClientError` of the call `name`."""
        try:
            yield
        except (ClientError, BundleError):
            raise
        except http.client.IncompleteRead as err:
            raise UnreachableError(name, "the connection broke within the answer") from err
        except (http.client.RemoteDisconnected, OSError) as err:  # TimeoutError and ssl errors among them
            raise UnreachableError(name, str(err) or type(err).__name__) from err
        except (http.client.HTTPException, ValueError) as err:
            raise BadAnswerError(name, f"expected HTTP, got {type(err).__name__} {err}") from err


class _Timed(io.RawIOBase):
    """A socket's bytes until a deadline: a timeout of the socket alone would begin anew with each byte that comes."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._raw, self._deadline = sock, sock.makefile("rb", buffering=0), deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out: no whole answer in time")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **keys: Any) -> None:
        super().__init__(sock, *args, **keys)
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock, deadline))
