"""Hostile values, drawn by a seeded generator. Knows no route and no format."""

from __future__ import annotations

import json
from random import Random
from typing import Any

NUMBERS = (
    0, -0.0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**21, 10**400, 1e308, -1e308, 5e-324,
    float("inf"), float("-inf"), float("nan"), 0.1, 1.5,
)  # fmt: skip
TEXTS = (
    "", " ", "\x00", "a\x00b", "\ud800", "x\udfffy", "\ufeff", "\u202etxt.exe", "\u0000" * 100, "a" * 10_000,
    "🏳️‍🌈", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙", "\r\nX-Injected: 1", "'; DROP TABLE jobs;--", "<script>alert(1)</script>",
    "${jndi:ldap://x}",
    "$(id)", "`id`", "%00", "%n%s%s%s", "null", "NaN", "true", "1e999", "0x7fffffff", "\\", "\"", "\x1b[2J", "\x7f",
)  # fmt: skip
FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")')
TEMPLATES = (
    "{", "}", "{}", "{0}", "{prompt!r}", "{prompt:>999999999}", "{prompt.__class__}", "{prompt[0]}", "{{prompt}",
    "{prompt:{prompt}}", "{__import__}", "{self}", "%(prompt)s %n", "{prompt}" * 500, "{\x00}", "{\ud800}",
    "{ prompt }",
    "{prompt.__class__.__mro__[1].__subclasses__}", "{{" * 5000, "{nothing}",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "X", "get")
TYPES = (
    "application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary=", "", "a/b; charset=utf-7",
    "multipart/form-data; boundary=" + "x" * 300, "application/x-www-form-urlencoded",
    "application/json; charset=latin9",
    "multipart/form-data; boundary=\"\x00\"", "\xff\xfe", "APPLICATION/JSON",
)  # fmt: skip
# The metadata services, this host and its networks, in the spellings that filters have missed.
HOSTS = (
    "127.0.0.1", "localhost", "LOCALHOST.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "[::1]",
    "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[::127.0.0.1]", "[2002:7f00:1::]",
    "127。0。0。1",
    "①②⑦.0.0.1", "127.0.0.1%00.example.com", "example.com@127.0.0.1", "127.0.0.1#@example.com", "[fe80::1%25eth0]",
    "169.254.169.254", "[fd00:ec2::254]", "2852039166", "0xa9fea9fe", "10.0.0.1", "192.168.0.1", "172.16.0.1",
    "100.100.100.200", "[::ffff:a9fe:a9fe]", "metadata", "[", "]", "[::1", "a" * 300,
)  # fmt: skip
SCHEMES = ("http", "https", "HTTP", "file", "local", "ftp", "gopher", "s3", "gs", "abfs", "hdfs", "memory", "zip",
           "data", "simplecache::http", "jar:file", "")  # fmt: skip


class Junk:
    """Draws from one seed. `outside` is a folder that nobody may touch, `port` one that nobody may connect to."""

    def __init__(self, seed: str, outside: str, port: int) -> None:
        self.random = Random(seed)
        self.outside = outside
        self.port = port

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def text(self) -> str:
        return str(self.random.choice((self.random.choice(TEXTS), self.random.choice(FORMULAS), self.name())))

    def name(self) -> str:
        """A name that would be a path."""
        up = "../" * self.random.randint(1, 6)
        return str(
            self.pick(
                "..", ".", "/", f"{up}escaped", f"{self.outside}/escaped", "..\\..\\escaped", "%2e%2e%2fescaped",
                "..%2fescaped", "%252e%252e%252f", f"{up}secret.jsonl", f"a/{up}secret.jsonl", "a\x00b", "con", "~",
                "x" * 5000, "é" * 200, ".hidden", "-rf", "a b", "a;b", "batch-" + "0" * 24, "file-" + "0" * 24,
                "*", "",
            )
        )  # fmt: skip

    def url(self) -> str:
        host = self.random.choice(HOSTS)
        port = self.pick(f":{self.port}", f":{self.port}", "", ":0", ":99999", ":-1", ":x", ":")
        path = self.pick("/", "/rows.jsonl", "/v1", "/../../x.csv", "?x=.jsonl", "/x.jsonl?endpoint_override=127.0.0.1")
        secret = f"{self.outside}/secret.jsonl"
        local = self.pick(secret, f"file://{secret}", f"file:///{secret}", f"local:{secret}", f"FILE:{secret}")
        return str(
            self.pick(f"{self.random.choice(SCHEMES)}://{host}{port}{path}", f"http://{host}{port}{path}", local)
        )

    def number(self) -> Any:
        return self.random.choice(NUMBERS)

    def deep(self) -> Any:
        value: Any = 1
        for _ in range(self.random.choice((10, 100, 400))):
            value = [value] if self.random.random() < 0.5 else {"a": value}
        return value

    def value(self, depth: int = 0) -> Any:
        kinds = [self.number, self.text, self.name, self.url, lambda: self.random.choice(TEMPLATES)]
        kinds += [lambda: None, lambda: True, lambda: [], dict]
        if depth < 3:
            kinds += [
                lambda: [self.value(depth + 1) for _ in range(self.random.randint(1, 4))],
                lambda: {self.key(): self.value(depth + 1) for _ in range(self.random.randint(1, 4))},
                self.deep,
            ]
        chosen: Any = self.random.choice(kinds)
        return chosen()

    def key(self) -> str:
        return str(self.pick(self.text(), "prompt", "messages", "role", "content", "__proto__", "custom_id", "type"))

    def changed(self, document: Any) -> Any:
        """The document with one or two of its values, at any depth, in place of others."""
        for _ in range(self.random.randint(1, 2)):
            document = self._change(document)
        return document

    def _change(self, value: Any) -> Any:
        if not value or not isinstance(value, dict | list) or self.random.random() < 0.25:
            return self.value()
        if isinstance(value, list):
            at = self.random.randrange(len(value))
            return [*value[:at], self._change(value[at]), *value[at + 1 :]]
        name = self.random.choice(list(value))
        return {**value, name: self._change(value[name])}

    def encoded(self, document: Any) -> bytes:
        """As JSON, well or badly."""
        text = json.dumps(document).encode()
        at = self.random.randint(0, len(text))
        bad = self.pick(
            text, text, text, text, text[:at], text[:at] + b"\xff\xfe" + text[at:], text[:at] + b"\x00" + text[at:],
            b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), b"[" * 100_000, b'{"a":' * 50_000, text + text,
            b"", b"null", b"[]", b'"', b"9" * 5000, b"1e" + b"9" * 50, b"{,}", b"\x1f\x8b\x08\x00", text[::-1],
            b'{"model":"' + b"\\ud800" * 10 + b'"}', b"NaN", json.dumps(document, ensure_ascii=False).encode("utf-8",
            "surrogatepass"),
        )  # fmt: skip
        return bytes(bad)

    def bytes(self) -> bytes:
        return self.random.randbytes(self.random.randint(0, 300))
