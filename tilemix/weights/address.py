"""Which addresses files may come from: https only, hosts from a list, no secrets in the text.

A list of hosts has entries such as `example.com` (default port), `example.com:8443` (that port) or `*.example.com`
(every host below it, default port).
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import SplitResult, parse_qsl, urlsplit

from tilemix.errors import Message, Value

# The hub and its stores (https://huggingface.co/.well-known/meta.json), Civitai and the two stores that it redirects
# downloads to, GitHub's releases, and Replicate's store of trained files.
HOSTS = frozenset(
    {
        "huggingface.co",
        "*.hf.co",
        "civitai.com",
        "b2.civitai.com",
        "civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com",
        "github.com",
        "objects.githubusercontent.com",
        "release-assets.githubusercontent.com",
        "replicate.delivery",
        "*.replicate.delivery",
    }
)
SECRETS = frozenset({"token", "api_key", "apikey", "key", "access_token"})  # query parameters, in lower case


def find_fault(url: str, where: str | None = None) -> Message | None:
    """Return what is wrong with the address of a file; None: nothing.

    The answer never repeats a user name, a password or a query, because these may be secrets.

    Args:
        url: the address.
        where: what the message calls it; None: the address itself, as `describe` shows it.
    """
    where = describe(url) if where is None else where

    def fault(code: str, **values: Value) -> Message:
        return Message(code, {"where": where, **values})

    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  reading it checks it
    except ValueError:
        return fault("weights-address")
    if not url.isascii() or not url.isprintable() or " " in url:
        return fault("weights-address-characters")
    if parts.scheme != "https":
        return fault("weights-address-scheme", scheme=parts.scheme[:20])
    if not parts.hostname:
        return fault("weights-address-host")
    if parts.username is not None or parts.password is not None:
        return fault("weights-address-user")
    if any(name.lower() in SECRETS for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        return fault("weights-address-token")
    return None


def name_host(url: str) -> str:
    """Return the host of an address that `find_fault` accepts, with its port unless that is 443."""
    parts = urlsplit(url)
    host = (parts.hostname or "").removesuffix(".")
    return host if parts.port in (None, 443) else f"{host}:{parts.port}"


def is_allowed(host: str, hosts: Collection[str]) -> bool:
    """Return whether `host`, as `name_host` writes it, is in the list `hosts`."""
    return host in hosts or any(
        entry.startswith("*.") and host.endswith(entry[1:]) and len(host) > len(entry) - 1 for entry in hosts
    )


def describe(url: str) -> str:
    """Return an address for a message, without user name, password and query, which may be secrets.

    An address that cannot be split is shown as "?", because nothing tells what in it is secret.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "?"
    shown = SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "").geturl()[:200]
    return shown if shown.isprintable() else ascii(shown)
