"""The studio's settings."""

import pytest

from tilemix.errors import SettingsError
from tilemix.studio.settings import Settings
from tilemix.system.project import ROOT

VERSION = "0123456789abcdef" * 4
TOKEN = "r8_" + 4 * "01234"


def test_everything_has_a_default_that_is_safe():
    settings = Settings.from_environment({"TILEMIX_STUDIO_PORT": ""})
    assert settings.is_loopback
    assert (settings.host, settings.port, settings.backend, settings.model) == (
        "127.0.0.1",
        8000,
        "cog",
        "miniature",
    )
    assert settings.folder == ROOT / "build" / "studio"
    assert settings.database_url.reveal() == f"sqlite:///{ROOT}/build/studio/studio.sqlite3"


def test_no_secret_shows_in_the_settings():
    secrets = {
        "TILEMIX_STUDIO_DATABASE": "postgresql://studio:pass-word@host/name",
        "TILEMIX_STUDIO_TOKEN": "a-token-of-the-studio",
        "WEBHOOK_AUTH_TOKEN": "a-token-of-the-webhooks",
        "REPLICATE_API_TOKEN": TOKEN,
        "WEBHOOK_SECRET": "whsec_one whsec_two",
    }
    settings = Settings.from_environment(secrets)
    assert settings.replicate_token.reveal() == TOKEN
    assert [secret.reveal() for secret in settings.webhook_secrets] == ["whsec_one", "whsec_two"]
    assert settings.secrets == {"pass-word", *(text for name, text in secrets.items() if "TOKEN" in name)} | {
        "whsec_one",
        "whsec_two",
    }
    for shown in (repr(settings), str(settings), f"{settings.token}"):
        for value in secrets.values():
            assert not any(part in shown for part in value.split())


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"TILEMIX_STUDIO_HOST": "0.0.0.0"},  # noqa: S104  a value under test
            "TILEMIX_STUDIO_HOST is '0.0.0.0', which others can reach: set TILEMIX_STUDIO_TOKEN",
        ),
        (
            {"TILEMIX_STUDIO_HOST": "example.com"},
            "TILEMIX_STUDIO_HOST is 'example.com', which others can reach: set TILEMIX_STUDIO_TOKEN",
        ),
        (
            {"TILEMIX_STUDIO_BACKEND": "modal"},
            "TILEMIX_STUDIO_BACKEND is 'modal'; expected one of cog, replicate",
        ),
        (
            {"TILEMIX_STUDIO_BACKEND": "replicate"},
            "TILEMIX_STUDIO_BACKEND is 'replicate': set REPLICATE_API_TOKEN",
        ),
        (
            {"TILEMIX_STUDIO_PORT": "80x"},
            "TILEMIX_STUDIO_PORT is '80x'; expected an integer from 0 to 65535",
        ),
        (
            {"TILEMIX_STUDIO_DEADLINE": "٣٠"},
            "TILEMIX_STUDIO_DEADLINE is '٣٠'; expected an integer from 10 to 86400",
        ),
        (
            {"TILEMIX_STUDIO_TOKEN": "short"},
            "TILEMIX_STUDIO_TOKEN is not a token; expected 16 to 512 printable ASCII characters",
        ),
        (
            {"TILEMIX_STUDIO_PUBLIC_URL": "http://example.com"},
            "TILEMIX_STUDIO_PUBLIC_URL is not a URL with 'https', without user, query and fragment",
        ),
        (
            {"TILEMIX_COG_URL": "file:///etc/passwd"},
            "TILEMIX_COG_URL is not a URL with 'http' or 'https', without user, query and fragment",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(environment, message):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(environment)
    assert str(caught.value) == message


def test_replicate_needs_the_models_version():
    environment = {"TILEMIX_STUDIO_BACKEND": "replicate", "REPLICATE_API_TOKEN": TOKEN}
    with pytest.raises(SettingsError, match="set TILEMIX_REPLICATE_VERSION"):
        Settings.from_environment({**environment, "TILEMIX_REPLICATE_VERSION": "v1"})
    assert Settings.from_environment({**environment, "TILEMIX_REPLICATE_VERSION": VERSION})


def test_a_host_with_a_token_may_be_reached_by_others():
    environment = {"TILEMIX_STUDIO_HOST": "::", "TILEMIX_STUDIO_TOKEN": "0123456789abcdef"}
    assert not Settings.from_environment(environment).is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_host_needs_no_token(host):
    assert Settings.from_environment({"TILEMIX_STUDIO_HOST": host}).is_loopback
