"""Ways to break a file: from the bytes of a valid one to the cases of a campaign."""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What must come of a case: the same as of the valid file, an error, or either of a result and an error.
SAME, ERROR, EITHER = "same", "error", "either"

LONG = "many words " * 9_100
RTL = "\u202e\u05e9\u05dc\u05d5\u05dd, \u0645\u0627 \u0627\u0633\u0645\u0643\u061f\u202c"
NO_NUMBERS = ["", "three", "1.5", "-1", "nan", "inf", "1e3", "9" * 5000, "½", "\u0663", "1 2"]


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    `name` says what it reads; `valid` are the files of a valid folder, of which `broken` is broken; `read` reads the
    folder. Of a table `needed` are its columns, of JSON and YAML the keys, `numbers` and `labels` those of them whose
    values are checked.
    """

    name: str
    valid: dict[str, bytes]
    broken: str
    read: Callable[[Path], Any]
    format: str
    needed: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    content: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", self.valid[self.broken])
        assert "é".encode() in self.content, f"{self.name}: latin-1 must differ from UTF-8"


@dataclass(frozen=True)
class Case:
    """A broken file, and what must come of it."""

    what: str
    content: bytes
    outcome: str


def cases(reader: Reader) -> Iterator[Case]:
    """All cases of a reader."""
    yield from of_bytes(reader.content, reader.format)
    yield from of_lines(reader.content, reader.format)
    match reader.format:
        case "csv" | "commas":
            yield from of_table(reader)
        case "lines" | "json":
            yield from of_json(reader)
        case "yaml":
            yield from of_yaml(reader)


def of_bytes(content: bytes, form: str) -> Iterator[Case]:
    text = content.decode()
    middle = content.index("é".encode()) + 2
    yield Case("as it was", content, SAME)
    yield Case("byte order mark", b"\xef\xbb\xbf" + content, SAME)
    yield Case("CRLF", text.replace("\n", "\r\n").encode(), SAME)
    yield Case("CR", text.replace("\n", "\r").encode(), SAME)
    yield Case("blank lines at the end", content + b"\n\n", EITHER if form == "text" else SAME)
    yield Case("no line end at the end", content.rstrip(b"\n"), SAME)
    for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7"):
        yield Case(name, text.encode(name), ERROR if name != "utf-7" else EITHER)
    for name in ("latin-1", "cp1252", "shift-jis"):
        yield Case(name, text.encode(name, errors="replace"), ERROR if name != "shift-jis" else EITHER)
    yield Case("NUL in the middle", content[:middle] + b"\0" + content[middle:], ERROR)
    yield Case("NUL at the end", content + b"\0", ERROR)
    yield Case("a block of NULs, as a crash leaves it", content + bytes(4096), ERROR)
    yield Case("cut inside of a character", content[: middle - 1], ERROR)
    yield Case("a byte that no text has", content[:middle] + b"\xff" + content[middle:], ERROR)
    yield Case("half of a surrogate pair", content[:middle] + b"\xed\xa0\x80" + content[middle:], ERROR)
    yield Case("overlong form", content[:middle] + b"\xc0\xaf" + content[middle:], ERROR)
    yield Case("nothing but white space", b" \n\n", EITHER)
    yield Case("nothing but a byte order mark", b"\xef\xbb\xbf", EITHER)
    yield Case("a picture", b"\x89PNG\r\n\x1a\n" + content, ERROR)
    yield Case("an archive", b"\x1f\x8b\x08\x00" + content, ERROR)
    yield Case("a page of a web server", b"<!DOCTYPE html>\n<html><body>404</body></html>\n", EITHER)
    yield Case("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", EITHER)
    yield Case("marks of a merge", b"<<<<<<< HEAD\n" + content + b"=======\n" + content + b">>>>>>> b\n", EITHER)
    for part in range(1, 12):
        cut = text[: len(text) * part // 12]
        yield Case(f"cut after {part} twelfths", cut.encode(), EITHER)
    for name, put in {
        "emoji": "👩🏽‍🦱",
        "right to left": RTL,
        "U+2028": "\u2028",
        "U+FEFF": "\ufeff",
        "bell": "\a",
    }.items():
        yield Case(f"{name} in a text", content[:middle] + put.encode() + content[middle:], EITHER)
    yield Case("100,000 characters in a text", content[:middle] + LONG.encode() + content[middle:], EITHER)
    if form != "yaml":  # whose reader takes seconds for it
        yield Case("a field of a million characters", content[:middle] + LONG.encode() * 10 + content[middle:], EITHER)
    rng = random.Random(13)
    for number in range(12):
        changed = bytearray(content)
        for _ in range(3):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        yield Case(f"three other bytes, {number}", bytes(changed), EITHER)


def of_lines(content: bytes, form: str) -> Iterator[Case]:
    lines = content.decode().rstrip("\n").split("\n")
    joined = {
        "the file twice": lines * 2,
        "lines in reverse": lines[::-1],
        "without the first line": lines[1:],
        "the first line alone": lines[:1],
        "the last line twice": [*lines, lines[-1]],
        "a quote before the last line": [*lines[:-1], '"' + lines[-1]],
        "a quote in the first line": [lines[0].replace("e", 'e"', 1), *lines[1:]],
        "a stray comma": [*lines[:-1], lines[-1] + ","],
        "semicolons": [line.replace(",", ";") for line in lines],
        "tabs": [line.replace(",", "\t") for line in lines],
    }
    for what, some in joined.items():
        yield Case(what, "\n".join([*some, ""]).encode(), EITHER)
    if form in ("csv", "commas", "lines", "rows"):
        spaced = "\n\n".join([*lines, ""])
        # The number of a line is part of an id where there is nothing else.
        yield Case("blank lines between the rows", spaced.encode(), EITHER if form == "lines" else SAME)


def of_table(reader: Reader) -> Iterator[Case]:
    rows = parse(reader.content, reader.format)
    header, body = rows[0], rows[1:]

    def case(what: str, changed: list[list[str]], outcome: str) -> Case:
        return Case(what, write(changed, reader.format), outcome)

    yield case("header alone", [header], EITHER)
    yield case("a further column", [[*row, "x"] for row in rows], EITHER)
    yield case(
        "a row with a field more", [*rows[:-1], [*rows[-1], "x"]], EITHER if reader.format == "commas" else ERROR
    )
    yield case("a row with a field less", [*rows[:-1], rows[-1][:-1]], ERROR)
    yield case("a row of one field", [*rows[:-1], rows[-1][:1]], ERROR)
    yield case("a row that says nothing", [*rows, [""] * len(header)], EITHER)
    yield case("the first row twice", [*rows, body[0]], EITHER)
    for name in reader.needed:
        at = header.index(name)
        yield case(f"column {name} renamed", [[*header[:at], "other", *header[at + 1 :]], *body], ERROR)
        yield case(f"column {name} in capitals", [[*header[:at], name.swapcase(), *header[at + 1 :]], *body], ERROR)
        yield case(f"column {name} left out", [row[:at] + row[at + 1 :] for row in rows], ERROR)
        yield case(
            f"column {name} twice", [[*row, row[at]] for row in rows], EITHER if reader.format == "commas" else ERROR
        )
        yield case(f"empty {name}", [*rows[:-1], [*rows[-1][:at], "", *rows[-1][at + 1 :]]], EITHER)
    for name in reader.numbers:
        at = header.index(name)
        for value in NO_NUMBERS:
            changed = [*rows[:-1], [*rows[-1][:at], value, *rows[-1][at + 1 :]]]
            yield case(f"{name} is {value[:8]!r}", changed, ERROR)
    for name in reader.labels:
        at = header.index(name)
        for value in ("wrong", "\u03a9mega", "0 0", "None"):
            changed = [*rows[:-1], [*rows[-1][:at], value, *rows[-1][at + 1 :]]]
            yield case(f"{name} is {value!r}", changed, ERROR)


def of_json(reader: Reader) -> Iterator[Case]:
    whole = reader.format == "json"
    records = json.loads(reader.content) if whole else [json.loads(line) for line in reader.content.splitlines()]

    def case(what: str, record: str, outcome: str) -> Case:
        rest = [json.dumps(one) for one in records[:-1]]
        text = f"[{', '.join([*rest, record])}]" if whole else "\n".join([*rest, record, ""])
        return Case(what, text.encode(), outcome)

    last = records[-1]
    yield case("another key", json.dumps({**last, "note": [1]}), SAME)
    for name, text in {
        "cut": json.dumps(last)[:-2],
        "two objects": json.dumps(last) * 2,
        "single quotes": repr(last),
        "a comma at the end": json.dumps(last)[:-1] + ",}",
        "nested deeply": "[" * 100_000,
        "a list": "[1]",
        "a text": '"a"',
        "a number": "7",
        "null": "null",
        "NaN": "NaN",
        "many digits": "9" * 5000,
        "an empty object": "{}",
    }.items():
        yield case(name, text, ERROR)
    for key in reader.needed:
        yield case(f"no {key}", json.dumps({k: v for k, v in last.items() if k != key}), ERROR)
        for value in (
            None,
            3,
            True,
            float("nan"),
            float("inf"),
            [],
            {},
            "",
            " ",
            ["", 1],
            [[]],
            "\ud800",
            ["a", None],
            [{}],
        ):
            yield case(f"{key} is {value!r}", json.dumps({**last, key: value}), ERROR)


def of_yaml(reader: Reader) -> Iterator[Case]:
    text = reader.content.decode()
    first = next(line for line in text.split("\n") if line and not line.startswith("#"))
    added = {
        "a tab": "\tx: 1\n",
        "a key twice": first + "\n",
        "an unknown key": "unknown: 1\n",
        "a list": "- 1\n",
        "a tag of Python": "unknown: !!python/object/apply:os.system [true]\n",
        "a bracket": "unknown: [1\n",
        "a list that holds itself": "unknown: &a [*a]\n",
        "a mapping that holds itself": "unknown: &a {b: *a}\n",
        "a list as a key": "? [1, 2]\n: 3\n",
        "a mapping as a key": "? {a: 1}\n: 3\n",
        "a date that there is not": "unknown: 2024-13-45\n",
        "many digits": f"unknown: {'9' * 5000}\n",
        "an alias of nothing": "unknown: *b\n",
        "a second document": "---\nx: 1\n",
        "binary": "unknown: !!binary a\n",
        "nested deeply": f"unknown: {'[' * 3000}\n",
        "a set": "unknown: !!set {a, b}\n",
        "a key that is null": "? \n: 1\n",
    }
    for what, line in added.items():
        yield Case(what, (text.rstrip("\n") + "\n" + line).encode(), ERROR)
    for what, other in {
        "a scalar": "7\n",
        "a list alone": "[é]\n",
        "empty": "",
        "null": "null\n",
        "no colon": "é\n",
    }.items():
        yield Case(f"{what} instead", other.encode(), ERROR)
    for key in reader.needed:
        lines = text.split("\n")
        at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
        yield Case(
            f"{key} renamed",
            "\n".join([*lines[:at], lines[at].replace(key, "other", 1), *lines[at + 1 :]]).encode(),
            ERROR,
        )
        for value in (
            ".nan",
            ".inf",
            "-.inf",
            "[]",
            "{}",
            "2024-01-31",
            "!!binary aGk=",
            "-1",
            "'\\ud800'",
            '"\\ud800"',
            "~",
        ):
            changed = [*lines[:at], f"{indent}{key}: {value}", *lines[at + 1 :]]
            yield Case(f"{key} is {value}", "\n".join(changed).encode(), EITHER)


def parse(content: bytes, form: str) -> list[list[str]]:
    text = content.decode()
    if form == "commas":
        return [line.split(",") for line in text.rstrip("\n").split("\n")]
    return list(csv.reader(io.StringIO(text, newline="")))


def write(rows: list[list[str]], form: str) -> bytes:
    if form == "commas":
        return "".join(",".join(row) + "\n" for row in rows).encode()
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()
