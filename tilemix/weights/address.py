"""Which addresses files may come from: https alone, hosts from a list, no secrets in the text.

An entry of a list of hosts is `example.com` (its default port), `example.com:8443` (that port), or
`*.example.com` (every host below it, default port).
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import SplitResult, parse_qsl, urlsplit

# The hub and its stores (https://huggingface.co/.well-known/meta.json), Civitai with the two stores that its
# downloads are redirected to, GitHub's releases, and where Replicate keeps what a training made.
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


def find_fault(url: str) -> str | None:
    """Say what is wrong with the address of a file, or return None.

    The answer never repeats a user name, a password or a query, because these may be secrets.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  it is read when it is asked for
    except ValueError:
        return "is no address"
    if not url.isascii() or not url.isprintable() or " " in url:
        return "holds a character that addresses have not"
    if parts.scheme != "https":
        return f"has the scheme {parts.scheme[:20]!r}, expected https"
    if not parts.hostname:
        return "names no host"
    if parts.username is not None or parts.password is not None:
        return "holds a user name or a password; tokens belong into the environment"
    if any(name.lower() in SECRETS for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        return "holds a token; tokens belong into the environment: HF_TOKEN, CIVITAI_TOKEN"
    return None


def name_host(url: str) -> str:
    """Return the host of an address that `find_fault` lets pass, with its port where that is not 443."""
    parts = urlsplit(url)
    host = (parts.hostname or "").removesuffix(".")
    return host if parts.port in (None, 443) else f"{host}:{parts.port}"


def is_allowed(host: str, hosts: Collection[str]) -> bool:
    """Tell whether `host`, as `name_host` writes it, is in the list `hosts`."""
    return host in hosts or any(
        entry.startswith("*.") and host.endswith(entry[1:]) and len(host) > len(entry) - 1 for entry in hosts
    )


def describe(url: str) -> str:
    """Return an address for a message: without the query, which may hold a signature."""
    parts = urlsplit(url)
    return SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "").geturl()[:200]
