"""CHAT files for tests: a header, and a body of one's own."""

from __future__ import annotations

B = "\x15"  # what begins and ends a bullet
HEAD = (
    "@UTF8\n@Begin\n@Languages:\teng, spa\n@Participants:\tCHI Target_Child, MOT Mother\n"
    "@ID:\teng|x|CHI|2;03.||||Target_Child|||\n@ID:\teng|x|MOT|||||Mother|||\n@Media:\tfoo, audio\n"
)


def make(body: str) -> str:
    return f"{HEAD}{body}\n@End\n"
