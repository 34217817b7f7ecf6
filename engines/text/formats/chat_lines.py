"""A CHAT file as its lines: tiers with their continuation lines, and the bullets in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BULLET = "\x15"
BULLETS = re.compile(rf"{BULLET}(\d{{1,12}})_(\d{{1,12}})-?{BULLET}")
FINAL_BULLET = re.compile(rf"{BULLETS.pattern}(?=(?:\s|\[\+[^\]]*\])*$)")  # postcodes may stand behind it
_LINE_END = re.compile(r"\n(?![ \t])")  # the next line continues this one if it begins with white space


@dataclass(frozen=True, slots=True)
class Tier:
    """A line of the file with its continuation lines. name: `*CHI`, `%wor`, `@Begin`."""

    name: str
    text: str  # as it stands in the file, line ends included
    line: int  # from 1

    @property
    def is_main(self) -> bool:
        return self.name.startswith("*")

    @property
    def content(self) -> str:
        """What stands behind the name, on one line."""
        return " ".join(self.text.partition(":")[2].split())


def list_tiers(source: str) -> Iterator[Tier]:
    """The file's tiers, which put together again are the file."""
    start, line = 0, 1
    for match in _LINE_END.finditer(source):
        text = source[start : match.end()]
        yield Tier(_name(text), text, line)
        start, line = match.end(), line + text.count("\n")
    if start < len(source):
        yield Tier(_name(source[start:]), source[start:], line)


def _name(text: str) -> str:
    return text.lstrip("\ufeff").partition(":")[0].split("\t")[0].rstrip()


def get_line_end(text: str) -> str:
    """Empty where the file ends without one."""
    return "\r\n" if text.endswith("\r\n") else "\n" if text.endswith("\n") else ""


def read_languages(tiers: Sequence[Tier]) -> tuple[str, ...]:
    """ISO 639-3 codes of @Languages."""
    header = next((tier for tier in tiers if tier.name == "@Languages"), None)
    return tuple(re.findall(r"[^\s,]+", header.content)) if header else ()


def read_media(tiers: Sequence[Tier]) -> str | None:
    """What @Media calls the recording."""
    header = next((tier for tier in tiers if tier.name == "@Media"), None)
    return split_media(header.content)[0] if header else None


def split_media(content: str) -> list[str | None]:
    """Name, kind and state that @Media states; None for what it does not. A name in quotation marks may have commas."""
    named = re.match(r'\s*(?:"([^"]*)"|([^,]*))', content)
    assert named is not None
    others = content[named.end() :].split(",")[1:]
    fields = [named[1] or named[2], *others, None, None]
    return [field.strip() or None if field else None for field in fields[:3]]


def find_times(main: str) -> tuple[float, float] | tuple[None, None]:
    """Of a main line, by the bullet at the end, even if it is reversed, else by those between the words. Seconds."""
    final = FINAL_BULLET.search(main)
    if final:
        return int(final[1]) / 1000, int(final[2]) / 1000
    times = [(int(bullet[1]), int(bullet[2])) for bullet in BULLETS.finditer(main)]
    times = [(start, end) for start, end in times if end > start]
    if not times:
        return None, None
    return min(start for start, _ in times) / 1000, max(end for _, end in times) / 1000


def make_bullet(start: float | None, end: float | None) -> str:
    """Empty without times, or if they are the same to the millisecond: CHAT has no bullet without a length."""
    if start is None or end is None or round(end * 1000) <= round(start * 1000):
        return ""
    return f"{BULLET}{round(start * 1000)}_{round(end * 1000)}{BULLET}"


def make_media_header(name: str | None, *, video: bool, linked: bool) -> str:
    """@Media, without its line end; empty without a name, or for one that CHAT cannot hold."""
    if not name or re.search(r"[\"\x00-\x1f\ufffd]", name):
        return ""
    written = f'"{name}"' if "," in name else name
    return f"@Media:\t{written}, {'video' if video else 'audio'}{'' if linked else ', unlinked'}"
