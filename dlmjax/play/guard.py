"""Who may ask: requests for this machine's own address, with the token. Other pages in the same browser have neither."""

import hmac
import json
import urllib.parse
from typing import Any

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OPEN = "/static/"  # files of the package


class Guard:
    """An ASGI application before another one: refuses a Host or an Origin of another name (DNS rebinding), and requests without token."""

    def __init__(self, application: Any, token: str, port: int):
        self._application, self._token = application, token.encode()
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope, receive, respond) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if headers.get("host", "").lower() not in self._hosts:
            await _refuse(respond, 403, "this server answers for 127.0.0.1 and localhost alone")
        elif headers.get("origin", "null") not in self._origins | {"null"}:
            await _refuse(respond, 403, "this server answers its own page alone")
        elif not scope["path"].startswith(OPEN) and not self._has_token(scope, headers):
            await _refuse(respond, 401, "the token is missing or wrong; open the address that dlmjax play printed")
        else:
            await self._application(scope, receive, _with_headers(respond))

    def _has_token(self, scope, headers: dict[str, str]) -> bool:
        kind, _, word = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            tokens = [word.strip()]
        else:
            try:
                tokens = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=16).get("token", [])
            except ValueError:  # more fields
                tokens = []
        return any(hmac.compare_digest(token.encode("utf-8", "replace"), self._token) for token in tokens)


def _with_headers(respond):
    async def with_headers(message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items() if name.lower().encode() not in own]
            message = message | {"headers": [*message["headers"], *more]}
        await respond(message)

    return with_headers


async def _refuse(respond, status: int, line: str) -> None:
    body = json.dumps({"error": line}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await _with_headers(respond)({"type": "http.response.start", "status": status, "headers": headers})
    await respond({"type": "http.response.body", "body": body})
