"""Abuses of limits and identity headers, each with what must hold: the answer, the counter, what the backend sees.

The gateway of these cases (tests/e2e/test_abuses.py) has:

    /user/*   a token; tier `user` per user_id      /ip/*     public; tier `ip` per client_ip
    /vip/*    a token; tier `vip` per user_id       /grace/*  a token or none; tier `grace` per user_id
    /tiny/*   a token; tier `tiny`, 3 requests
    anything else, and wrong credentials: tier `guess` of the address

`<mallory>` in a request is a good token of the user mallory with scope `read`; `<another>` is another one of his, with
another scope, id and age; `<tiny NAME>` one of a user of that name. Whatever an abuse claims to be is called
"victim": the word must not reach a backend. Add a case for each trick that ever surprised somebody.
"""

from hashlib import sha256
from typing import NamedTuple

LOCAL = "ip:ip:127.0.0.1"
GUESS = "guess:ip:127.0.0.1"
GRACE = {"grace:ip:127.0.0.1": 1}
MALLORY = "user:user:mallory"
REAL = "203.0.113.9"  # an address that a trusted proxy saw
VICTIM_IP = "198.51.100.7"


class Abuse(NamedTuple):
    """`send`: one or more requests as bytes; `statuses` of their answers; `counts`: how much which counter rises.

    sees: header -> values that the backend must see of it, in each request that reaches it.
    trusted: the client stands behind a trusted proxy, which wrote what the case says.
    """

    name: str
    send: bytes
    statuses: tuple[int, ...] = (200,)
    counts: dict[str, int] = {MALLORY: 1}
    sees: dict[str, list[str]] = {}
    trusted: bool = False


def request(line: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((line + b" HTTP/1.1", b"Host: gw.test", b"X-Tag: <tag>", *lines, b"", body))


TOKEN = b"Authorization: Bearer <mallory>"


def user(*lines: bytes) -> bytes:
    """A good request of mallory, with these lines too."""
    return request(b"GET /user/x", TOKEN, *lines)


def at(target: bytes) -> bytes:
    return request(b"GET " + target, TOKEN)


def _spellings(name: str) -> list[str]:
    """Names that are, or that a CGI-like backend reads as, the same name."""
    words = name.split("-")
    return [
        *(name.lower(), name.upper(), name.swapcase(), name.replace("-", "_"), name.replace("-", ".")),
        *(name.replace("-", "_", 1), "-".join(words[:-1]) + "_" + words[-1], "_".join(words).lower()),
        *(".".join(words).upper(), "".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(name))),
    ]


IDENTITY = ("X-User-ID", "X-User-Scopes", "X-Partner-ID")
ABUSES: list[Abuse] = []


def add(name: str, send: bytes, *statuses: int, counts: dict[str, int] | None = None, **more: object) -> None:
    counted = {MALLORY: 1} if counts is None else counts
    ABUSES.append(Abuse(name, send, statuses or (200,), counted, **more))  # type: ignore[arg-type]


# --- identity headers, in every disguise

for header in IDENTITY:
    plain = header.encode()
    lines = [f"{spelling}: victim".encode() for spelling in _spellings(header)]
    add(f"{header} as it is", user(plain + b": victim"))
    add(f"{header} in every spelling", user(*lines))
    add(f"{header} in every spelling, nobody logged in", request(b"GET /ip/x", *lines), counts={LOCAL: 1})
    add(f"{header} in front of the credential", request(b"GET /user/x", plain + b": victim", TOKEN))
    add(f"{header} twice", user(plain + b": mallory", plain + b": victim"))
    add(f"{header} empty and full", user(plain + b":", plain + b": victim"))
    add(f"{header} with a blank before the colon", user(plain + b" : victim"), 400, counts={})
    add(f"{header} with a tab before the colon", user(plain + b"\t: victim"), 400, counts={})
    add(f"{header} with a NUL in its name", user(plain + b"\0: victim"), 400, counts={})
    add(f"{header} folded into another line", user(b"Accept: a", b" " + plain + b": victim"), 400, counts={})
    add(f"{header} with its value folded", user(plain + b":", b"\tvictim"), 400, counts={})
    add(f"{header} behind a bare LF", user(b"Accept: a\n" + plain + b": victim"), 400, counts={})
    add(f"{header} behind a bare CR", user(b"Accept: a\r" + plain + b": victim"), 400, counts={})
    add(
        f"{header} as a trailer",
        request(
            b"POST /user/x",
            TOKEN,
            b"Transfer-Encoding: chunked",
            b"Trailer: " + plain,
            body=b"1\r\nx\r\n0\r\n" + plain + b": victim\r\n\r\n",
        ),
    )
    add(
        f"{header} as a chunk extension",
        request(
            b"POST /user/x", TOKEN, b"Transfer-Encoding: chunked", body=b"1;" + plain + b"=victim\r\nx\r\n0\r\n\r\n"
        ),
    )
    add(f"{header} nominated away", user(b"Connection: keep-alive, " + plain + b", " + plain.lower()))
    add(f"{header} given and nominated", user(plain + b": victim", b"Connection: " + plain))
    add(f"{header} kept by naming an alias", user(plain + b": victim", b"Connection: " + plain.replace(b"-", b"_")))

add("every identity header nominated away", user(b"Connection: X-User-ID, X-User-Scopes, X-Partner-ID, X-Request-ID"))
add("the credential nominated away", user(b"Connection: Authorization"))
add("the host nominated away", user(b"Connection: Host, Content-Length, X-Forwarded-For, X-Forwarded-Proto"))
add("a Connection of 2,000 names", user(b"Connection: " + b"x-user-id," * 600))
add("a next line as Latin-1 knows it", user(b"Accept: a\x85X-User-ID: root"))
add("a next line as UTF-8 knows it", user(b"Accept: a\xc2\x85X-User-ID: root"))
add(
    "a request in the body",
    request(
        b"POST /user/x", TOKEN, b"Content-Length: 45", body=b"GET /user/y HTTP/1.1\r\nX-User-ID: victim\r\n\r\n\r\n"
    ),
)
add(
    "two framings",
    request(b"POST /user/x", TOKEN, b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    400,
    counts={},
)
add("an identity in the query", at(b"/user/x?X-User-ID=victim&user_id=victim"))
add("an identity in a cookie", user(b"Cookie: X-User-ID=victim; access_token=victim"))
add("an identity in the host", user(b"X-Forwarded-Host: victim", b"X-Forwarded-User: victim", b"X-Original-Host: x"))
add(
    "addresses of all kinds",
    user(
        *(
            f"{name}: victim".encode()
            for name in (
                "X-Real-IP",
                "x_real_ip",
                "Forwarded",
                "forwarded",
                "X-Forwarded-For",
                "X_Forwarded_For",
                "x.forwarded.for",
                "X-Forwarded-Port",
                "X-Forwarded-Server",
                "X-FORWARDED-PROTO",
                "X-Forwarded-Prefix",
                "X-Forwarded-Uri",
            )
        )
    ),
)

# --- credentials: one user is one counter, and what is no credential of the route is none

for name, line in (
    ("in lower case", b"Authorization: bearer <mallory>"),
    ("in upper case", b"AUTHORIZATION: BEARER <mallory>"),
    ("in mixed case", b"aUTHORIZATION: bEaReR <mallory>"),
    ("two blanks", b"Authorization: Bearer  <mallory>"),
    ("many blanks around", b"Authorization:      Bearer       <mallory>      "),
    ("no blank behind the colon", b"Authorization:Bearer <mallory>"),
    ("a tab behind the colon", b"Authorization:\tBearer <mallory>\t"),
):
    add(f"Bearer {name} is the same user", request(b"GET /user/x", line))
add("another token of his is the same user", request(b"GET /user/x", b"Authorization: Bearer <another>"))
for name, lines in (
    ("two credentials", (TOKEN, TOKEN)),
    ("two different credentials", (TOKEN, b"Authorization: Bearer <another>")),
    ("two API keys", (TOKEN, b"X-API-Key: a", b"X-API-Key: victim")),
):
    add(name, request(b"GET /user/x", *lines), 400, counts={})
for name, line in (
    ("a tab between", b"Authorization: Bearer\t<mallory>"),
    ("no blank", b"Authorization: Bearer<mallory>"),
    ("a colon", b"Authorization: Bearer: <mallory>"),
    ("two tokens in one line", b"Authorization: Bearer <mallory> <another>"),
    ("two tokens and a comma", b"Authorization: Bearer <mallory>, Bearer <another>"),
    ("another scheme", b"Authorization: Basic dmljdGltOng="),
    ("the token alone", b"Authorization: <mallory>"),
    ("DPoP", b"Authorization: DPoP <mallory>"),
    ("no-break space", b"Authorization: Bearer\xa0<mallory>"),
    ("nothing", b"Authorization:"),
    ("a user's name", b"Authorization: Bearer victim"),
):
    add(f"a credential with {name}", request(b"GET /user/x", line), 401, counts={GUESS: 1})
for name, send in (
    ("for a proxy", request(b"GET /user/x", b"Proxy-Authorization: Bearer <mallory>")),
    ("with an underscore", request(b"GET /user/x", b"X_Authorization: Bearer <mallory>")),
    ("in the query", request(b"GET /user/x?access_token=<mallory>")),
    ("in a cookie", request(b"GET /user/x", b"Cookie: access_token=<mallory>")),
    ("as an API key", request(b"GET /user/x", b"X-API-Key: <mallory>")),
):
    add(f"a credential {name}", send, 401, counts={})
add(
    "a credential in a trailer",
    request(b"POST /user/x", b"Transfer-Encoding: chunked", body=b"0\r\nAuthorization: Bearer <mallory>\r\n\r\n"),
    401,
    counts={},
)
add("an API key beside the token", user(b"X-API-Key: pk_live_victim_0123456789012345678901234567890123456789012"))
add("an API key that nobody looks at", request(b"GET /ip/x", b"X-API-Key: victim-1"), counts={LOCAL: 1})
add(
    "another one is the same address",
    request(b"GET /ip/x", b"X-API-Key: victim-2", b"Authorization: Bearer <mallory>"),
    counts={LOCAL: 1},
)
add("a forged token is nobody where none is asked for", request(b"GET /ip/x", b"Authorization: x"), counts={LOCAL: 1})
add("nobody in a grace period is an address", request(b"GET /grace/x", b"X-User-ID: victim"), counts=GRACE)
add("an API key in a grace period is nobody", request(b"GET /grace/x", b"X-API-Key: victim"), counts=GRACE)
add("a user in a grace period is himself", request(b"GET /grace/x", TOKEN), counts={"grace:user:mallory": 1})
add(
    "a wrong credential in a grace period",
    request(b"GET /grace/x", b"Authorization: Bearer victim"),
    401,
    counts={GUESS: 1},
)

# --- addresses, by a client that is no proxy of ours: the peer is the client whatever it says

for name, value in (
    ("a victim's", VICTIM_IP),
    ("a list", f"{VICTIM_IP}, {REAL}"),
    ("loopback", "127.0.0.2"),
    ("IPv6", "2001:db8::7"),
    ("rubbish", "}:1"),
    ("braces", "{victim}"),
    ("10 KB of it", "1.1.1.1, " * 800),
    ("nothing", ""),
    ("our own", "127.0.0.1"),
):
    line = f"X-Forwarded-For: {value}".encode()
    add(
        f"X-Forwarded-For of a stranger: {name}",
        request(b"GET /ip/x", line),
        counts={LOCAL: 1},
        sees={"X-Forwarded-For": ["127.0.0.1"]},
    )
for spoof in (
    "X-Real-IP",
    "Forwarded",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "Client-IP",
    "X_Forwarded_For",
    "X-Originating-IP",
    "X-Remote-Addr",
    "Fastly-Client-IP",
    "X-ProxyUser-Ip",
):
    for behind_proxy in (False, True):
        add(
            f"{spoof}{' behind a proxy' if behind_proxy else ''}",
            request(b"GET /ip/x", f"{spoof}: {VICTIM_IP}".encode()),
            counts={LOCAL: 1},
            sees={"X-Forwarded-For": ["127.0.0.1"]},
            trusted=behind_proxy,
        )

# --- addresses, behind a trusted proxy: what it appended, and nothing to the left of it

for name, value, counter in (
    ("an address", REAL, REAL),
    ("the victim to the left", f"{VICTIM_IP}, {REAL}", REAL),
    ("the victim far to the left", ", ".join([VICTIM_IP] * 30 + [REAL]), REAL),
    ("rubbish to the left", f"}}:0, {REAL}", REAL),
    ("our proxies to the right", f"{VICTIM_IP}, {REAL}, 127.0.0.9, 127.0.0.1", REAL),
    ("a port", f"{REAL}:4711", REAL),
    ("another port", f"{REAL}:4712", REAL),
    ("as IPv6 sees it", f"::ffff:{REAL}", REAL),
    ("as IPv6 sees it in hex", "::ffff:cb00:7109", REAL),
    ("in brackets", f"[::ffff:{REAL}]:80", REAL),
    ("no blanks", f"{VICTIM_IP},{REAL}", REAL),
    ("blanks and tabs", f"{VICTIM_IP} ,\t {REAL} ", REAL),
    ("IPv6", "2001:db8:1:2::7", "2001-db8-1-2"),
    ("IPv6 of the same /64", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001-db8-1-2"),
    ("IPv6 in capitals and zeros", "2001:0DB8:0001:0002:0000:0000:0000:0007", "2001-db8-1-2"),
    ("IPv6 with a port", "[2001:db8:1:2::8]:443", "2001-db8-1-2"),
    ("IPv6 of another /64", "2001:db8:1:3::7", "2001-db8-1-3"),
    ("IPv6 with a zone", "fe80::1%eth0", "127.0.0.1"),
    ("IPv6 with a zone that breaks out", "fe80::1%}:0", "127.0.0.1"),
    ("leading zeros", "203.0.113.009", "127.0.0.1"),
    ("octal", "0313.0.0161.011", "127.0.0.1"),
    ("hexadecimal", "0xcb007109", "127.0.0.1"),
    ("one number", "3405803785", "127.0.0.1"),
    ("short", "203.113", "127.0.0.1"),
    ("a fifth part", f"{REAL}.1", "127.0.0.1"),
    ("a network", "203.0.113.0/24", "127.0.0.1"),
    ("a name", "localhost", "127.0.0.1"),
    ("unknown", "unknown", "127.0.0.1"),
    ("obfuscated", "_hidden", "127.0.0.1"),
    ("quoted", f'"{VICTIM_IP}"', "127.0.0.1"),
    ("a parameter", f"for={VICTIM_IP}", "127.0.0.1"),
    ("a bad port", f"{VICTIM_IP}:99999999", "127.0.0.1"),
    ("a port of letters", f"{VICTIM_IP}:x}}", "127.0.0.1"),
    ("other digits", "２０３.0.113.9".encode().decode("latin-1"), "127.0.0.1"),
    ("a semicolon", f"{VICTIM_IP}; {REAL}", "127.0.0.1"),
    ("rubbish at the right end", f"{VICTIM_IP}, }}:0", "127.0.0.1"),
    ("a comma at the right end", f"{VICTIM_IP},", "127.0.0.1"),
    ("only commas", ",,,,", "127.0.0.1"),
    ("nothing", "", "127.0.0.1"),
    ("a thousand proxies", f"{VICTIM_IP}" + ",127.0.0.1" * 700, "127.0.0.1"),
    ("a key", f"rate:{{ip:ip:{VICTIM_IP}}}:0", "127.0.0.1"),
):
    line = f"X-Forwarded-For: {value}".encode("latin-1")
    add(
        f"X-Forwarded-For by a proxy: {name}", request(b"GET /ip/x", line), counts={f"ip:ip:{counter}": 1}, trusted=True
    )
add(
    "X-Forwarded-For in two lines",
    request(b"GET /ip/x", f"X-Forwarded-For: {VICTIM_IP}".encode(), f"X-Forwarded-For: {REAL}".encode()),
    counts={f"ip:ip:{REAL}": 1},
    trusted=True,
)
add(
    "X-Forwarded-For nominated away",
    request(b"GET /ip/x", b"Connection: X-Forwarded-For", f"X-Forwarded-For: {REAL}".encode()),
    counts={f"ip:ip:{REAL}": 1},
    trusted=True,
)
add(
    "rotation within a /64",
    b"".join(request(b"GET /ip/x", f"X-Forwarded-For: 2001:db8:9:9:{n:x}::{n}".encode()) for n in range(1, 9)),
    *[200] * 8,
    counts={"ip:ip:2001-db8-9-9": 8},
    trusted=True,
)
add(
    "X-Forwarded-For of 10 KB behind a proxy",
    request(b"GET /ip/x", b"X-Forwarded-For: " + b"1.1.1.1, " * 1200),
    431,
    counts={},
    trusted=True,
)
add("X-Forwarded-For with a NUL", request(b"GET /ip/x", b"X-Forwarded-For: 1.1.1.1\0"), 400, counts={}, trusted=True)
add("a user is a user from any address", user(f"X-Forwarded-For: {VICTIM_IP}".encode()), trusted=True)

# --- paths: another spelling is the same route and its tier, or is refused

for target in (
    b"//vip/x",
    b"/vip//x",
    b"/./vip/x",
    b"/user/../vip/x",
    b"/%76ip/x",
    b"/v%69%70/x",
    b"/vip/x/",
    b"/vip/x?",
    b"/vip",
    b"/vip/",
    b"/vip/x;a=b",
    b"/vip/%78?/../../user/x",
    b"http://gw.test/vip/x",
    b"HTTP://GW.TEST/vip/x",
    b"/vip/%252e%252e/user/x",
    b"/user/%2e%2e/vip/x",
    b"/user/%2E./vip/x",
    b"/vip/.",
    b"/ip/..//vip/./x",
    b"/vip/*",
    b"/vip/..user/x",
):
    add(f"path {target.decode()}", at(target), counts={"vip:user:mallory": 1})
for target in (
    b"/vip%2fx",
    b"/vip%2Fx",
    b"/vip%5cx",
    b"/vip\\x",
    b"/vip/..%2fuser/x",
    b"/vip/..;/user/x",
    b"/vip/%00",
    b"/vip/%zz",
    b"/../vip/x",
    b"/vip/%c0%ae%c0%ae/user/x",
    b"/vip/%u002e",
    b"vip/x",
    b"/vip/x#y",
    b"*",
    b"http://victim@gw.test/vip/x",
):
    add(f"path {target.decode()}", at(target), 400, counts={})
for target in (b"/VIP/x", b"/Vip/x", b"/vipx", b"/vip;/x", b"/vip%20/x", b"/vip./x", b"/%2576ip/x", b"/"):
    add(f"path {target.decode()} is no route and counts as such", at(target), 404, counts={GUESS: 1})

# --- methods, versions and connections

for method in (b"HEAD", b"POST", b"PUT", b"DELETE"):
    add(f"{method.decode()} counts as GET does", request(method + b" /user/x", TOKEN, b"Content-Length: 0"))
for method in (b"get", b"Get", b"GET\t", b"G\x00T"):
    add(f"method {method!r}", request(method + b" /user/x", TOKEN), 400, counts={})
for method in (b"OPTIONS", b"TRACE", b"PATCH", b"PROPFIND"):
    add(f"method {method.decode()} is not the route's", request(method + b" /user/x", TOKEN), 405, counts={GUESS: 1})
add("a method in a header", user(b"X-HTTP-Method-Override: DELETE", b"X-Method-Override: DELETE"))
add("CONNECT", request(b"CONNECT gw.test:443", TOKEN), 400, counts={})
add("an upgrade", user(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ"))
add("HTTP/1.0", user(b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"))
add("eight at once in a pipeline", user() * 8, *[200] * 8, counts={MALLORY: 8})
add("a pipeline of two callers", user() + request(b"GET /ip/x") + user(), 200, 200, 200, counts={MALLORY: 2, LOCAL: 1})
add(
    "a pipeline with a wrong credential in it",
    user() + request(b"GET /user/x", b"Authorization: Bearer victim") + user(),
    200,
    401,
    200,
    counts={MALLORY: 2, GUESS: 1},
)
add("a pipeline with rubbish at its end", user() + user(b"X-User-ID : victim"), 200, 400)
add("a request ID of somebody else", user(b"X-Request-ID: victim\x80"))
add("another host", user(b"X-Forwarded-Host: victim").replace(b"Host: gw.test", b"Host: GW.TEST:8443"))
add("two hosts", user(b"Host: victim"), 400, counts={})
add("a user agent that breaks out", user(b"User-Agent: }:0 {x} \xff"))


def _tiny(name: bytes, *spellings: bytes) -> bytes:
    return b"".join(request(b"GET /tiny/x", line.replace(b"%", b"<tiny " + name + b">")) for line in spellings)


# --- the limit holds whatever the spelling: three pass, and not one more

add(
    "a limit in a pipeline",
    _tiny(b"t1", *[b"Authorization: Bearer %"] * 6),
    200,
    200,
    200,
    429,
    429,
    429,
    counts={"tiny:user:t1": 3},
)
add(
    "a limit and the spellings of Bearer",
    _tiny(
        b"t2",
        b"Authorization: Bearer %",
        b"authorization: bearer %",
        b"AUTHORIZATION: BEARER  %",
        b"Authorization: bEARER %",
        b"Authorization:   Bearer    %",
    ),
    200,
    200,
    200,
    429,
    429,
    counts={"tiny:user:t2": 3},
)
add(
    "a limit and paths",
    b"".join(
        request(b"GET " + path, b"Authorization: Bearer <tiny t3>")
        for path in (b"/tiny/x", b"//tiny/x", b"/tiny/y", b"/%74iny/x", b"/ip/../tiny/x", b"/tiny")
    ),
    200,
    200,
    200,
    429,
    429,
    429,
    counts={"tiny:user:t3": 3},
)
add(
    "a limit and methods",
    b"".join(
        request(m + b" /tiny/x", b"Authorization: Bearer <tiny t4>", b"Content-Length: 0")
        for m in (b"GET", b"POST", b"PUT", b"DELETE", b"GET")
    ),
    200,
    200,
    200,
    429,
    429,
    counts={"tiny:user:t4": 3},
)
add(
    "a limit and API keys",
    b"".join(request(b"GET /tiny/x", b"Authorization: Bearer <tiny t5>", b"X-API-Key: victim%d" % n) for n in range(5)),
    200,
    200,
    200,
    429,
    429,
    counts={"tiny:user:t5": 3},
)
add(
    "a limit and addresses",
    b"".join(
        request(b"GET /tiny/x", b"Authorization: Bearer <tiny t6>", b"X-Forwarded-For: 1.1.1.%d" % n) for n in range(5)
    ),
    200,
    200,
    200,
    429,
    429,
    counts={"tiny:user:t6": 3},
    trusted=True,
)
add(
    "a limit and fresh tokens",
    b"".join(request(b"GET /tiny/x", b"Authorization: Bearer <tiny t7 %d>" % n) for n in range(5)),
    200,
    200,
    200,
    429,
    429,
    counts={"tiny:user:t7": 3},
)


# --- user ids: they come from signed tokens and still may not leave their key, nor meet another's


def _digest(identifier: str) -> str:
    return "sha256-" + sha256(identifier.encode()).hexdigest()[:32]


# (sub of a signed token, what stands in its key, or None where the token is refused)
IDENTIFIERS: list[tuple[str, str | None]] = [
    ("victim.", "victim."),
    ("Victim", "Victim"),
    ("VICTIM", "VICTIM"),
    ("victim@example.com", "victim@example.com"),
    ("v" * 64, "v" * 64),
    *(
        (one, _digest(one))
        for one in (
            "{victim}",
            "victim}:0",
            "victim}:1707264000",
            "}{",
            "{",
            "}",
            "}}{{::",
            "user:victim",
            "rate:{user:user:victim}:0",
            "user:user:victim",
            "victim:",
            ":victim",
            "victim|x",
            "victim,x",
            "victim;x",
            "victim*",
            "*",
            "vict?m",
            "[v]ictim",
            "victim\\",
            "victim/..",
            "../victim",
            "victim%7D",
            "victim%0d%0aX-User-ID:%20root",
            "victim'--",
            'victim"',
            "$victim",
            "`victim`",
            "<victim>",
            "victim#",
            "victim&x=y",
            "victim=",
            "{{victim}}",
            "${victim}",
            "victim!",
            "~victim",
            "^victim",
            "v" * 65,
            "v" * 255,
            "v" * 256,
            "V" * 65,
            "sha256-" + "0" * 32,
            _digest("{victim}"),
            _digest(_digest("{victim}")),
            "sha256-victim",
            "https://id.example/victim",
        )
    ),
    *(
        (one, None)
        for one in (
            "",
            " ",
            "victim ",
            " victim",
            "vic tim",
            "victim\r\nX-User-ID: root",
            "victim\n",
            "victim\r",
            "victim\0",
            "\0victim",
            "victim\t",
            "victim\x7f",
            "victim\x1b[2J",
            "viсtim",
            "ｖictim",
            "victim\u0301",
            "victim\u200b",
            "\ufeffvictim",
            "victim\u2028",
            "victim\x85",
            "v" * 257,
            "v" * 4000,
        )
    ),
]
