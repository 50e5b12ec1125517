"""No credential of a sent message stays, and nothing else changes.

The logins are those of the venues' own documentation, the values invented.
"""

from __future__ import annotations

import string
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kcs.exchanges import VENUES, Subscription
from kcs.live.scrub import MARK, TEXT_CHARS_MAX, scrub, scrub_url

LISTEN_KEY = "pqia91ma19a5s61cv6a81va65sdf19v8a65a1a5s61cv6a81va65sdf19v8a65a1"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJhY2Nlc3Nfa2V5IjoieCJ9.c2lnbmF0dXJlLW9mLWl0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"op":"login","args":[{"apiKey":"hunter-k","passphrase":"hunter-p","timestamp":"17","sign":"hunter-s="}]}',
            '{"op":"login","args":[{"apiKey":"*","passphrase":"*","timestamp":"*","sign":"*"}]}',
        ),
        (
            '{"req_id":"7","op":"auth","args":["hunter-key",1662350400000,"hunter-signature"]}',
            '{"req_id":"*","op":"auth","args":["*",1662350400000,"*"]}',
        ),
        (
            '{"event":"auth","apiKey":"hunter","authSig":"hunter","authPayload":"AUTHhunter","authNonce":17}',
            '{"event":"auth","apiKey":"*","authSig":"*","authPayload":"*","authNonce":17}',
        ),
        (
            '{"type":"subscribe","channels":["user"],"signature":"hunter","key":"hunter","passphrase":"hunter"}',
            '{"type":"subscribe","channels":["user"],"signature":"*","key":"*","passphrase":"*"}',
        ),
        (
            f'{{"type":"subscribe","channel":"level2","product_ids":["BTC-USD"],"jwt":"{JWT}"}}',
            '{"type":"subscribe","channel":"level2","product_ids":["BTC-USD"],"jwt":"*"}',
        ),
        (
            '{"method":"subscribe","params":{"channel":"level3","symbol":["BTC/USD"],"token":"hunter"}}',
            '{"method":"subscribe","params":{"channel":"level3","symbol":["BTC/USD"],"token":"*"}}',
        ),
        (
            '{"method":"session.logon","params":{"apiKey":"hunter","signature":"hunter","timestamp":17},"id":1}',
            '{"method":"session.logon","params":{"apiKey":"*","signature":"*","timestamp":17},"id":1}',
        ),
        (
            f'{{"method":"SUBSCRIBE","params":["btcusdt@trade","{LISTEN_KEY}"],"id":2}}',
            '{"method":"SUBSCRIBE","params":["btcusdt@trade","*"],"id":2}',
        ),
        (
            '{"channel":"spot.login","event":"api","payload":{"api_key":"hunter","signature":"hunter","x":"hunter"}}',
            '{"channel":"spot.login","event":"api","payload":{"api_key":"*","signature":"*","x":"*"}}',
        ),
        (
            '{"channel":"spot.orders","auth":{"method":"api_key","KEY":"hunter","SIGN":"hunter"},"payload":["BTC_USDT"]}',
            '{"channel":"spot.orders","auth":{"method":"*","KEY":"*","SIGN":"*"},"payload":["BTC_USDT"]}',
        ),
        (
            '{"method":"public/auth","params":{"grant_type":"client_credentials","client_secret":"hunter"},"id":3}',
            '{"method":"public/auth","params":{"grant_type":"*","client_secret":"*"},"id":3}',
        ),
        (
            '{"action":"req","ch":"auth","params":{"authType":"api","accessKey":"hunter","signature":"hunter"}}',
            '{"action":"req","ch":"auth","params":{"authType":"*","accessKey":"*","signature":"*"}}',
        ),
        (
            '{"op":"authKeyExpires","args":["hunter",1662350400,"hunter"]}',
            '{"op":"authKeyExpires","args":["*",1662350400,"*"]}',
        ),
        (
            '{"method":"user.auth","params":["API","hunter","hunter",1662350400],"id":4}',
            '{"method":"user.auth","params":["*","*","*",1662350400],"id":4}',
        ),
        ('{"accessToken":"hunter","event":"korbit:subscribe"}', '{"accessToken":"*","event":"korbit:subscribe"}'),
        ('42["auth",{"t":"hunter"}]', '42["auth",{"t":"*"}]'),
        ('{"a":"{\\"api_key\\":\\"hunter\\",\\"b\\":1}"}', '{"a":"{\\"api_key\\":\\"*\\",\\"b\\":1}"}'),
        ('{ "tok\\u0065n" : "hunter" , "n" : [1, 2.50] }', '{ "tok\\u0065n" : "*" , "n" : [1, 2.50] }'),
        ('{"token":["hunter",{"x":"hunter","y":17}],"z":17}', '{"token":["*",{"x":"*","y":"*"}],"z":17}'),
        ('{"pin":1234,"x":1234}', '{"pin":"*","x":1234}'),
        ("{token: hunter, n: 5}", None),
        ("Authorization: Bearer hunterhunter\r\nHost: h", "Authorization: *\r\nHost: h"),
        ("GET /x\r\nX-MBX-APIKEY: hunter\r\nAccept: */x", "GET /x\r\nX-MBX-APIKEY: *\r\nAccept: */x"),
        ("login token=hunter&id=7", "login token=*&id=7"),
        ("a:token=hunter", "a:token=*"),
        ('wss://h/?token="hunter"x&b:sign=hunter', 'wss://h/?token="*"x&b:sign=*'),
        (f"say {JWT} again", "say * again"),
        ('{"x":"Bearer hunterhunter"}', '{"x":"Bearer *"}'),
        ('{"url":"wss://me:hunter@h/?listenKey=hunter&a=b"}', '{"url":"wss://*@h/?listenKey=*&a=b"}'),
        ("-----BEGIN EC PRIVATE KEY-----\nhunter\n-----END EC PRIVATE KEY-----", "*"),
    ],
)
def test_what_venues_take_as_credentials_is_hidden(text: str, expected: str | None) -> None:
    found = scrub(text)
    assert "hunter" not in found
    assert LISTEN_KEY not in found
    assert "eyJ" not in found
    if expected is not None:
        assert found == expected.replace("*/x", "\0").replace("*", MARK).replace("\0", "*/x")
    assert scrub(found) == found


REQUESTS = [
    '[{"ticket":"kcs-00ff00ff00ff"},{"type":"orderbook","codes":["KRW-BTC.15","KRW-ETH"],"level":0},{"format":"SIMPLE"}]',
    '[{"ticket":"6f0e1f5c-9c5c-4a5e-8a7e-0d1c2b3a4f5e"},{"method":"LIST_SUBSCRIPTIONS"}]',
    "PING",
    '{"method":"SUBSCRIBE","params":["btcusdt@trade","btcusdt@depth20@100ms","ethusdt@bookTicker"],"id":1}',
    '{"op":"subscribe","args":[{"channel":"books","instId":"BTC-USDT"}]}',
    '{"op":"subscribe","args":["orderbook.50.BTCUSDT","publicTrade.BTCUSDT"],"req_id":"kcs-1"}',
    '{"type":"subscribe","product_ids":["BTC-USD"],"channels":["level2_batch","heartbeat"]}',
    '{"method":"subscribe","params":{"channel":"book","symbol":["BTC/USD"],"depth":10,"snapshot":true}}',
    '{"event":"subscribe","channel":"book","symbol":"tBTCUSD","prec":"P0","len":"25"}',
    '{"event":"subscribe","channel":"candles","key":"trade:1m:tBTCUSD"}',
    '{"event":"conf","flags":131072}',
    '{"accessToken":null,"timestamp":1622465474000,"event":"korbit:subscribe","data":{"channels":["ticker:btc_krw"]}}',
    '{"request_type":"SUBSCRIBE","channel":"ORDERBOOK","topic":{"quote_currency":"KRW","target_currency":"BTC"}}',
    '{"codes":["AUTHUSDT","LOGINUSDT","KEY-USD"],"id":"x"}',
    '{"time":1,"channel":"spot.book_ticker","event":"subscribe","payload":["BTC_USDT"]}',
    '{"sub":"market.btcusdt.mbp.150","id":"id1"}',
    '{"signal":1,"design":"a","tokens_listed":3,"keys":["a"],"passive":true,"author":"x","bookkeeping":"b"}',
    '{"token":"","sign":null,"secret":false}',
    "",
]  # fmt: skip


@pytest.mark.parametrize("text", REQUESTS)
def test_a_request_without_a_secret_comes_back_as_it_is(text: str) -> None:
    assert scrub(text) is text or scrub(text) == text


def test_what_our_venues_send_comes_back_as_it_is() -> None:
    for venue in VENUES.values():
        for wire_format in venue.formats:
            subscription = Subscription(venue.channels, venue.default_markets, wire_format)
            for text in (*venue.subscribe(subscription, "kcs-00ff00ff00ff"), *venue.heartbeat.texts_after_subscribe):
                assert scrub(text) == text


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("wss://api.upbit.com/websocket/v1", None),
        ("wss://stream.binance.com:9443/stream?streams=btcusdt@trade/ethusdt@depth&timeUnit=MICROSECOND", None),
        ("https://api.binance.com/api/v3/depth?symbol=BTCUSDT&limit=5000", None),
        ("ws://127.0.0.1:9801/websocket/v1#a", None),
        ("wss://ws-api.kucoin.com/endpoint?token=hunter&connectId=7", "wss://ws-api.kucoin.com/endpoint?token=*&connectId=7"),
        ("wss://h/?a=1&%74oken=hunter;API-Key=hunter#listenKey=hunter", "wss://h/?a=1&%74oken=*;API-Key=*#listenKey=*"),
        (f"wss://stream.binance.com:9443/ws/{LISTEN_KEY}", "wss://stream.binance.com:9443/ws/*"),
        ("ws://me:hunter@host:1/path", "ws://*@host:1/path"),
        ("ws://hunter@x:hunter@host", "ws://*@host"),
        ("//me:hunter@host", "//*@host"),
        ("wss://h/?next=https://x/?token=hunter&a=b", "wss://h/?next=https://x/?token=*&a=b"),
    ],
)  # fmt: skip
def test_urls(url: str, expected: str | None) -> None:
    found = scrub_url(url)
    assert found == (url if expected is None else expected.replace("*", MARK))
    assert scrub_url(found) == found


SECRET = "hunter2SENTINEL"
CREDENTIAL_KEYS = [
    "apiKey", "api_key", "API-KEY", "X-MBX-APIKEY", "secret", "client_secret", "sign", "signature", "Signature",
    "OK-ACCESS-SIGN", "passphrase", "cb_access_passphrase", "token", "access_token", "accessToken", "jwt", "password",
    "authorization", "Proxy-Authorization", "listenKey", "authSig", "authPayload", "cookie", "private_key", "auth",
]  # fmt: skip

harmless_keys = st.from_regex(r"x_[a-z0-9]{0,6}", fullmatch=True)
harmless_text = st.text(st.characters(codec="utf-8"), max_size=12).map(
    lambda text: text.replace(":", "").replace("=", "")
)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | harmless_text
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(harmless_keys, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def spelled(value: Any, draw: Any) -> str:
    """JSON with blanks and escapes wherever the grammar allows them."""
    blank = draw(st.sampled_from(["", "", " ", "\n\t "]))
    if isinstance(value, dict):
        pairs = [f"{spelled(key, draw)}{blank}:{blank}{spelled(item, draw)}" for key, item in value.items()]
        return "{" + f"{blank},{blank}".join(pairs) + blank + "}"
    if isinstance(value, list):
        return "[" + f"{blank},{blank}".join(spelled(item, draw) for item in value) + blank + "]"
    if isinstance(value, str):
        text = msgspec.json.encode(value).decode()
        if text.isascii() and text[1:2].isalpha() and draw(st.booleans()):
            text = f'"\\u{ord(text[1]):04x}{text[2:]}'
        return text
    return msgspec.json.encode(value).decode()


@settings(max_examples=200, deadline=None)
@given(documents, st.data())
def test_any_document_without_a_credential_stays_byte_for_byte(document: Any, data: st.DataObject) -> None:
    text = spelled(document, data.draw)
    assert scrub(text) == text


@settings(max_examples=300, deadline=None)
@given(documents, st.sampled_from(CREDENTIAL_KEYS), st.data())
def test_a_secret_anywhere_under_any_such_key_goes_and_the_rest_stays(
    document: Any, key: str, data: st.DataObject
) -> None:
    shape = data.draw(st.sampled_from(["text", "list", "object", "nested"]))
    value: Any = {
        "text": SECRET,
        "list": ["a", SECRET],
        "object": {"x_": {"x_y": SECRET}},
        "nested": msgspec.json.encode({"x_": 1, key: SECRET}).decode(),
    }[shape]
    guarded = {"x_before": document, ("x_" if shape == "nested" else key): value, "x_after": document}
    text = spelled([document, guarded], data.draw)
    found = scrub(text)
    assert SECRET not in found
    decoded = msgspec.json.decode(found)
    original = msgspec.json.decode(text)
    assert decoded[0] == original[0]
    assert decoded[1]["x_before"] == original[1]["x_before"]
    assert decoded[1]["x_after"] == original[1]["x_after"]
    assert scrub(found) == found


pieces = st.lists(
    st.sampled_from([*'{}[]:,"\\ \n', "token", "auth", '"op"', '"auth"', "Bearer ", "eyJabcde.", "=", "//a@",
                     "1e5", "é", "\ud800"])
    | st.text(max_size=5),
    max_size=40,
).map("".join)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(pieces)
@example('"' * 3)
@example('{"token":"\ud800"}')
@example('{"a":"\\ud800 token=x"}')
def test_it_never_raises_and_json_stays_json(text: str) -> None:
    found = scrub(text)
    scrub_url(scrub_url(text))
    try:
        msgspec.json.decode(text.encode())
    except ValueError:
        return
    msgspec.json.decode(found.encode())
    assert scrub(found) == found


@pytest.mark.parametrize(
    "unit",
    ["[", "{", '{"token":', '["auth",', '"', '\\"', "eyJ", "-eyJaaaaa", "eyJaaaaaa.", "Bearer ", "token=", "x-", "//a@",
     "-----BEGIN PRIVATE KEY-----", "&a=", " ", "a", "7", "é", '{"op":"auth"},', '"token":"x",', "[[],",
     string.printable],
)  # fmt: skip
def test_time_is_linear_in_the_text(unit: str) -> None:
    """Quadratic, any of these would take minutes."""
    text = unit * (200_000 // len(unit))
    scrub(text)
    scrub_url(text)


def test_what_is_too_long_or_too_deep_is_hidden_whole() -> None:
    assert scrub("a" * (TEXT_CHARS_MAX + 1)) == MARK
    assert scrub_url("a" * (TEXT_CHARS_MAX + 1)) == MARK
    assert "hunter" not in scrub("[" * 300 + '"token","hunter"' + "]" * 300)
    nested = '{"token":"hunter"}'
    for _ in range(8):
        nested = msgspec.json.encode({"x": nested}).decode()
    assert "hunter" not in scrub(nested)
