"""Takes credentials out of what we send before it is captured or logged: `scrub` for messages, `scrub_url` for URLs.

Contract: the values of credential-like keys, of parameters of a login, of URL parameters, and whatever looks like a
bearer token, a JWT or a listen key become `[scrubbed]`; every other character stays, so a text without a secret comes
back as the identical string. Never raises; time and memory are linear in the text, which is not looked through but
hidden whole beyond `TEXT_CHARS_MAX`. Sans-I/O, knows no venue; the venues' ways to log in are listed in its test.

What is understood: JSON, objects and arrays in any spelling and depth, also several values in a row or with something
before them (socket.io), also JSON inside a JSON string; headers (`Authorization: ...`) and `key=value`. Public market
data needs no secret, so this is a net below a rope: it errs on the side of hiding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

import msgspec

MARK: Final = "[scrubbed]"
TEXT_CHARS_MAX: Final = 4 * 1024 * 1024
"""No venue takes a message of this size from a client."""

_DEPTH_MAX: Final = 256
_NESTED_MAX: Final = 4
"""JSON in a string of JSON in a string: so deep is looked; what lies deeper is hidden when it mentions a credential."""

_CREDENTIAL: Final = re.compile(
    r"(?:access|refresh|auth|api|session|bearer|id|ws|jwt|csrf)?token|sign|sig|signdata|authsign|authsig|jwt|auth"
    r"|authpayload|authcode|passwd|pwd|pass|pin|otp|totp|cookie|setcookie|session|sessionid|sessionkey|credentials?"
    r"|.*(?:signature|apikey|apikeyid|secret|secretkey|accesskey|privatekey|authkey|listenkey|passphrase|password"
    r"|authorization|bearer|accesssign|apisign|authtoken|accesstoken|securitytoken)"
)
"""Keys, lower case, without `-`, `_`, `.` and blanks, whose values are secret; some whatever stands before them."""

_COMPANION: Final = re.compile(r"key|uid|user|username|login|account|accountid|clientid|userid")
"""Keys that are secret only beside a credential: a candle subscription has a `key` too."""

_OPERATION: Final = re.compile(r"op|event|method|cmd|command|type|action|ch|channel|e|request|reqtype")
"""Keys whose value says what a message is for."""

_LOGIN: Final = re.compile(r"(?:.*[./:_])?(?:auth\w*|log_?[io]n|sign_?in|session\.logon)", re.IGNORECASE)
"""An operation that logs in: `auth`, `login`, `user.auth`, `public/auth`, `spot.login`, `authKeyExpires`."""

_LOGIN_WORD: Final = re.compile(r"auth|login|logon|authenticate|authorize", re.IGNORECASE)
"""The same as the first element of an array, where it could also be a market."""

_HINT: Final = re.compile(
    r"tok|sig|secret|auth|pass|pwd|cook|sess|cred|key|jwt|bearer|basic|pin|otp|log|eyJ|PRIVATE|\\u|%|[0-9A-Za-z]{60}",
    re.IGNORECASE,
)
"""A text without any of these holds nothing to hide; with one it is looked at. `\\u` and `%` may spell anything."""

_TOKENS: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+|\s+', re.DOTALL)
_NOTHING: Final = frozenset(('""', "null", "true", "false"))
"""Values that are no secret under any key."""

_NAME: Final = r"(?<![\w.-])[A-Za-z][\w.-]{0,63}"
_PAIR: Final = re.compile(rf"([\"']?)({_NAME})\1[ \t]{{0,8}}[:=][ \t]{{0,8}}")
"""A key and what follows it; its value is looked at on its own, since `a:token=x` is a value with a pair in it."""

_VALUE: Final = re.compile(r"\"[^\"\r\n]*\"?|'[^'\r\n]*'?|[^\s,;&\"'{}\[\]]+")
_HEADER: Final = re.compile(r"(?im)^(?P<head>[ \t]*(?:proxy-)?authorization[ \t]*[:=][ \t]*)(?P<value>[^\r\n]+)")
_SHAPES: Final = (
    (re.compile(r"\b(bearer|basic)(\s{1,8})[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1\2{MARK}"),
    (re.compile(r"//[^/?#\s@\"']{1,256}@"), f"//{MARK}@"),
    (re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?"), MARK),
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:(?!-----)[\s\S])*(?:-----END [A-Z ]{0,40}-----)?"), MARK),
    (re.compile(r"(?<![0-9A-Za-z])(?=[0-9]{0,59}[A-Za-z])(?=[A-Za-z]{0,59}[0-9])[0-9A-Za-z]{60,}"), MARK),
)
"""What is secret wherever it stands. The last: an opaque word (listen key, hex digest) that no channel's name is."""

_PARAMETER: Final = re.compile(r"([?&;#])([\w.\-%]{1,64})=")
_ARGUMENT: Final = re.compile(r"[^&;#\s\"'\\]+")
_USER: Final = re.compile(r"^(?P<head>[A-Za-z][\w+.-]{0,20}:)?//[^/?#\s@]*(?:@[^/?#\s@]*)*@")


def scrub(text: str) -> str:
    """`text` without credentials; the same string when there are none. Never raises."""
    if len(text) > TEXT_CHARS_MAX:
        return MARK
    return _scrubbed(text, 0)


def scrub_url(url: str) -> str:
    """`url` without user, password, credential-like parameters and opaque path segments. Never raises."""
    if len(url) > TEXT_CHARS_MAX:
        return MARK
    return _shapes(_hidden(_USER.sub(_user, url), _PARAMETER, _ARGUMENT))


def _scrubbed(text: str, nested: int) -> str:
    if _HINT.search(text) is None:
        return text
    if "{" in text or "[" in text:
        found = _json(text, nested)
        if found is not None and _is_json(text):
            return found
        text = text if found is None else found
    return _words(text)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text.encode(), type=msgspec.Raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name[:256]).lower()


def _is_credential(name: str) -> bool:
    return _CREDENTIAL.fullmatch(_plain(name)) is not None


def _user(match: re.Match[str]) -> str:
    return f"{match['head'] or ''}//{MARK}@"


def _shapes(text: str) -> str:
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def _words(text: str) -> str:
    """Text that is no JSON: headers, `key=value`, URLs."""
    text = _HEADER.sub(lambda match: match["head"] + MARK, text)
    return _shapes(_hidden(_hidden(text, _PAIR, _VALUE), _PARAMETER, _ARGUMENT))


def _hidden(text: str, head: re.Pattern[str], value: re.Pattern[str]) -> str:
    """The values behind credential-like keys (group 2 of `head`) replaced; what is behind others is looked at, too."""
    parts, done, at = [], 0, 0
    while (key := head.search(text, at)) is not None:
        at = key.end()
        secret = value.match(text, at) if _is_credential(unquote(key[2])) else None
        if secret is not None:
            quote = secret[0][0] if secret[0][0] in "\"'" else ""
            parts += [text[done:at], quote, MARK, quote]
            done = at = secret.end()
    return "".join([*parts, text[done:]])


# JSON: one pass over its tokens. Scalars are gathered in order; a container decides about its own when it ends.


class _TooDeep(Exception):
    """Deeper than any message that we send: hidden whole."""


class _Scalar:
    """A string, number or word: where it stands, under which key, in which container, and whether it goes."""

    __slots__ = ("end", "hidden", "key", "operation", "owner", "start", "text")

    def __init__(self, text: str, start: int, key: str, owner: int) -> None:
        self.text = text
        self.start = start
        self.end = start + len(text)
        self.key = key
        self.owner = owner
        self.hidden = False
        self.operation = False
        """It says what its container is for."""


class _Container:
    """An object or array being read. `first`: its scalars begin here in the list of all."""

    __slots__ = ("credential", "first", "hidden", "is_object", "key", "login", "name", "pending")

    def __init__(self, name: int, *, is_object: bool, hidden: bool, first: int, key: str) -> None:
        self.name = name
        self.is_object = is_object
        self.hidden = hidden
        self.first = first
        self.key = key
        """Of an array: the key it stands under, which is that of its elements too."""
        self.pending: str | None = None
        """Of an object: the key whose value is due."""
        self.login = False
        self.credential = False


def _json(text: str, nested: int) -> str | None:
    """The text with secrets replaced in place, or None when it is not made of JSON's tokens."""
    try:
        scalars = _scalars(text)
    except _TooDeep:
        return f'"{MARK}"'
    if scalars is None:
        return None
    at = 0
    parts: list[str] = []
    for scalar in scalars:
        shown = f'"{MARK}"' if scalar.hidden else _content(scalar.text, nested)
        if shown is not scalar.text:
            parts += (text[at : scalar.start], shown)
            at = scalar.end
    return "".join((*parts, text[at:])) if parts else text


def _scalars(text: str) -> list[_Scalar] | None:
    """All scalars with their verdicts; None where brackets or strings do not match. Raises _TooDeep."""
    scalars: list[_Scalar] = []
    logins: list[tuple[int, int, int]] = []
    stack = [_Container(0, is_object=False, hidden=False, first=0, key="")]
    names = 0
    for token, start in _tokens(text):
        here = stack[-1]
        if token is None:
            return None
        if len(stack) > _DEPTH_MAX:
            raise _TooDeep
        if token in "{[":
            names += 1
            key = _due_key(here)
            hidden = here.hidden or _is_credential(key)
            here.credential = here.credential or (here.is_object and hidden)
            stack.append(_Container(names, is_object=token == "{", hidden=hidden, first=len(scalars), key=key))
        elif token in "}]":
            if len(stack) == 1 or here.is_object != (token == "}"):
                return None
            stack.pop()
            _end(here, scalars, logins)
        elif token == ",":
            here.pending = None
        elif token != ":":
            _take(here, token, start, scalars)
    if len(stack) > 1:
        return None
    _hide_logins(scalars, logins)
    return scalars


def _tokens(text: str) -> Iterator[tuple[str | None, int]]:
    """(token, offset), blanks left out; (None, offset) where the text is no JSON."""
    at = 0
    for match in _TOKENS.finditer(text):
        if match.start() != at:
            break
        at = match.end()
        token = match[0]
        if not token.isspace():
            yield token, match.start()
    if at != len(text):
        yield None, at


def _due_key(here: _Container) -> str:
    """The key that the value to come stands under."""
    if not here.is_object:
        return here.key
    return here.pending or ""


def _take(here: _Container, token: str, start: int, scalars: list[_Scalar]) -> None:
    """A string, number or word: a key, or a value."""
    if here.is_object and here.pending is None:
        here.pending = _decoded(token)
        return
    key = _due_key(here)
    secret = here.hidden or _is_credential(key)
    if token in _NOTHING or not (secret or token[0] == '"'):
        return
    scalar = _Scalar(token, start, _plain(key), here.name)
    scalar.hidden = secret
    if here.is_object:
        here.credential = here.credential or secret
        scalar.operation = _OPERATION.fullmatch(scalar.key) is not None
        here.login = here.login or (scalar.operation and _LOGIN.fullmatch(_decoded(token)[:64]) is not None)
    elif len(scalars) == here.first and _LOGIN_WORD.fullmatch(_decoded(token)[:64]):
        here.login = scalar.operation = True
    scalars.append(scalar)


def _end(here: _Container, scalars: list[_Scalar], logins: list[tuple[int, int, int]]) -> None:
    """A container has ended: what its scalars mean together."""
    if here.login:
        logins.append((here.first, len(scalars), here.name))
    elif here.credential:
        for scalar in scalars[here.first :]:
            if scalar.owner == here.name and _COMPANION.fullmatch(scalar.key):
                scalar.hidden = True


def _hide_logins(scalars: list[_Scalar], logins: list[tuple[int, int, int]]) -> None:
    """Every text inside a login goes, except what says that it is one."""
    ends: dict[int, int] = {}
    for first, end, _ in logins:
        ends[first] = max(end, ends.get(first, 0))
    owners = {name for _, _, name in logins}
    reach = 0
    for at, scalar in enumerate(scalars):
        reach = max(reach, ends.get(at, 0))
        if at < reach and scalar.text[0] == '"' and not (scalar.operation and scalar.owner in owners):
            scalar.hidden = True


def _decoded(token: str) -> str:
    """What a JSON string says; of anything else, and of a broken one, the token itself."""
    if token[0] != '"':
        return token
    if "\\" not in token:
        return token[1:-1]
    try:
        return msgspec.json.decode(token.encode(), type=str)
    except (msgspec.MsgspecError, ValueError):
        return token[1:-1]


def _content(token: str, nested: int) -> str:
    """A string that is not secret for its key, without what is secret in it; the same object when nothing is."""
    if token[0] != '"' or _HINT.search(token) is None:
        return token
    plain = _decoded(token)
    if plain[:1] in ("{", "[") and nested >= _NESTED_MAX:
        return f'"{MARK}"'
    shown = _scrubbed(plain, nested + 1) if plain[:1] in ("{", "[") else _words(plain)
    if shown == plain:
        return token
    try:
        return msgspec.json.encode(shown).decode()
    except (msgspec.MsgspecError, ValueError):
        return f'"{MARK}"'
