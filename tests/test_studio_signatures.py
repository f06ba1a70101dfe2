"""Who sent a webhook: signatures of the Standard Webhooks scheme, and bearer tokens."""

import base64
import hashlib
import hmac
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.studio_parts import OTHER_SECRET, SECRET, sign
from tilemix.errors import BackendDownError, DeliveryError, SettingsError
from tilemix.studio.settings import Secret
from tilemix.studio.signatures import Keyring, SignedHeaders, check_bearer

BODY = b'{"id": "abc", "status": "succeeded"}'


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def verify(headers: dict[str, str], body: bytes = BODY, *secrets: str, **options) -> None:
    keyring = Keyring([Secret(secret) for secret in secrets or (SECRET,)], **options)
    keyring.verify(SignedHeaders.parse(raw(headers)), body)


def test_the_signature_of_the_specification_fits():
    """The MAC is computed here a second time, from the specification alone, without the library."""
    stamp = str(int(time.time()))
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    mac = hmac.digest(key, b"msg_1." + stamp.encode() + b"." + BODY, hashlib.sha256)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": stamp}
    verify(headers | {"webhook-signature": "v1," + base64.b64encode(mac).decode()})


def test_names_of_headers_are_found_in_any_case():
    verify({name.title(): value for name, value in sign(BODY).items()})


@pytest.mark.parametrize("age", [-290, 290])
def test_a_delivery_is_taken_until_five_minutes_away(age):
    verify(sign(BODY, age=age))


@pytest.mark.parametrize("age", [-310, 310, 86_400])
def test_a_delivery_from_farther_away_is_refused(age):
    with pytest.raises(DeliveryError, match="in the last 300 seconds") as caught:
        verify(sign(BODY, age=age))
    assert caught.value.status == 401


@pytest.mark.parametrize("changed", ["webhook-id", "webhook-timestamp", "body"])
def test_whatever_is_signed_cannot_be_changed(changed):
    headers = sign(BODY)
    if changed == "webhook-id":
        headers["webhook-id"] = "msg_2"
    if changed == "webhook-timestamp":
        headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) - 1)
    with pytest.raises(DeliveryError):
        verify(headers, BODY + b" " if changed == "body" else BODY)


def test_one_of_several_signatures_is_enough_and_other_versions_are_passed_over():
    good = sign(BODY)["webhook-signature"]
    bad = sign(BODY, secret=OTHER_SECRET)["webhook-signature"]
    asymmetric = "v1a," + good.removeprefix("v1,")
    verify(sign(BODY) | {"webhook-signature": f"{bad} {asymmetric} {good}"})
    for signature in (bad, asymmetric, "v2," + good.removeprefix("v1,")):
        with pytest.raises(DeliveryError):
            verify(sign(BODY) | {"webhook-signature": signature})


def test_old_and_new_key_fit_while_a_key_is_changed():
    for secret in (SECRET, OTHER_SECRET):
        verify(sign(BODY, secret=secret), BODY, OTHER_SECRET, SECRET)
    with pytest.raises(DeliveryError):
        verify(sign(BODY, secret=OTHER_SECRET), BODY, SECRET)


def test_the_senders_new_key_is_asked_for_when_none_fits_and_once_a_minute_at_most():
    moments = [0.0]
    asked = []

    def refetch() -> Secret:
        asked.append(moments[0])
        if len(asked) == 1:
            raise BackendDownError("backend-unreachable", backend="Replicate", reason="no answer")
        return Secret(OTHER_SECRET)

    keyring = Keyring([Secret(SECRET)], refetch=refetch, clock=lambda: moments[0])
    by_new_key = SignedHeaders.parse(raw(sign(BODY, secret=OTHER_SECRET)))
    for moment in (0.0, 59.0):
        moments[0] = moment
        with pytest.raises(DeliveryError):
            keyring.verify(by_new_key, BODY)
    moments[0] = 61.0
    keyring.verify(by_new_key, BODY)
    keyring.verify(by_new_key, BODY)
    keyring.verify(SignedHeaders.parse(raw(sign(BODY))), BODY)
    assert asked == [0.0, 61.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Each of these the library takes, or answers with another exception than its own.
        ("webhook-timestamp", "+{stamp}"),
        ("webhook-timestamp", "{stamp}.5"),
        ("webhook-timestamp", " {stamp} "),
        ("webhook-timestamp", "1_7{stamp}"),
        ("webhook-timestamp", "1.7e9"),
        ("webhook-timestamp", "nan"),
        ("webhook-id", "a.b"),
        ("webhook-id", ""),
        ("webhook-id", "a" * 129),
        ("webhook-id", "a b"),
        ("webhook-signature", "{signature} "),
        ("webhook-signature", " {signature}"),
        ("webhook-signature", "{signature}\t{signature}"),
        ("webhook-signature", "{signature},x"),
        ("webhook-signature", "v1"),
        ("webhook-signature", "v1,"),
        ("webhook-signature", "v1,é"),
        ("webhook-signature", "v1,!!{bare}"),
        ("webhook-signature", " ".join(["{signature}"] * 9)),
        ("webhook-signature", "v1," + "A" * 1030),
    ],
)
def test_a_header_of_another_shape_is_refused_before_the_library_sees_it(name, value):
    headers = sign(BODY)
    given = value.format(
        stamp=headers["webhook-timestamp"],
        signature=headers["webhook-signature"],
        bare=headers["webhook-signature"].removeprefix("v1,"),
    )
    with pytest.raises(DeliveryError, match=name) as caught:
        verify(headers | {name: given})
    assert caught.value.status == 400


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_each_header_stands_exactly_once(name):
    headers = sign(BODY)
    missing = raw({key: value for key, value in headers.items() if key != name})
    with pytest.raises(DeliveryError, match=f"0 headers {name}; expected exactly one"):
        SignedHeaders.parse(missing)
    twice = [*raw(headers), (name.upper().encode(), headers[name].encode())]
    with pytest.raises(DeliveryError, match=f"2 headers {name}; expected exactly one"):
        SignedHeaders.parse(twice)


def test_a_signature_of_an_impossible_length_and_a_body_that_is_no_text_are_refused_as_any_other():
    for headers, body in ((sign(BODY) | {"webhook-signature": "v1,A"}, BODY), (sign(BODY), b"\xff\xfe")):
        with pytest.raises(DeliveryError) as caught:
            verify(headers, body)
        assert caught.value.status == 401


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"webhook-id", b"Webhook-Timestamp", b"webhook-signature"]),
            st.one_of(
                st.binary(max_size=40),
                st.just(str(int(time.time())).encode()),
                st.from_regex(rb"v1,[A-Za-z0-9+/]{0,44}={0,2}", fullmatch=True),
                st.from_regex(rb"[A-Za-z0-9_-]{1,20}", fullmatch=True),
            ),
        ),
        max_size=5,
    ),
    body=st.binary(max_size=40),
)
def test_nothing_that_is_not_signed_gets_in_or_raises_anything_else(headers, body):
    with pytest.raises(DeliveryError):
        Keyring([Secret(SECRET)]).verify(SignedHeaders.parse(headers), body)


@pytest.mark.parametrize(
    "secret",
    [
        "whsec_AAAA",
        "whsec_" + "A" * 100,
        SECRET.removeprefix("whsec_"),
        SECRET.replace("g", "-", 1),
        SECRET + "\n",
        "",
    ],
)
def test_a_secret_that_is_none_is_refused_at_the_start_and_not_shown(secret):
    with pytest.raises(SettingsError) as caught:
        Keyring([Secret(secret)])
    bare = secret.removeprefix("whsec_").strip()
    assert not bare or bare not in str(caught.value)


def test_a_bearer_token_lets_in_and_nothing_else_does():
    token = Secret("a-token-of-the-webhooks")
    check_bearer([(b"Authorization", b"Bearer a-token-of-the-webhooks")], token)
    for headers in (
        [],
        [(b"authorization", b"Bearer a-token-of-the-webhook")],
        [(b"authorization", b"a-token-of-the-webhooks")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Bearer a-token-of-the-webhooks")] * 2,
    ):
        with pytest.raises(DeliveryError) as caught:
            check_bearer(headers, token)
        assert caught.value.status == 401


@pytest.mark.parametrize("given", [b"Bearer ", b"Bearer None", b""])
def test_without_a_token_of_ours_nothing_is_let_in(given):
    with pytest.raises(DeliveryError):
        check_bearer([(b"authorization", given)], None)
