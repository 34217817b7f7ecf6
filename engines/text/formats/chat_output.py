"""CHAT as it is written: the source itself, with nothing touched but what was asked for.

An utterance with new times gets them: the bullet of its main line, those between its words, and %wor. A file that
gets times gets an @Media too, or loses its `unlinked`: otherwise TalkBank's parser and CHECK refuse the bullets. An
utterance with a new analysis gets %mor and %gra, each in one line, right behind the main line, and words of it that
were cut anew; both end with a terminator, even where the main line has none, as TalkBank's parser wants it. Where no
new tier is written, the old one stays.

%wor holds fewer words than are aligned, by the rule of TalkBank's own aligner (https://github.com/TalkBank/chatter,
talkbank-model/src/alignment/helpers/rules.rs): no fragments, no nonwords, nothing untranscribed. Words stand in it
without CHAT's marks (ice+cream: icecream), each with its bullet, if it has a time; the tag markers `,`, `„` and `‡`
without one; before them a `[- spa]` of the main line, and behind them its terminator, `.` if it has none. It is put
where the utterance's %wor tier was, or behind its other tiers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rustling.chat import Utterance as Parsed

from prefork.engines.text.document import Document, Token, TokenKind, Utterance, Word
from prefork.engines.text.formats.chat import (
    ChatKind,
    ChatToken,
    list_chat_tokens,
    list_utterances,
    make_countable,
    read_lines,
    read_utterances,
)
from prefork.engines.text.formats.chat_grammar import (
    TIERS,
    find_terminator,
    is_analysed,
    list_tokens,
    place_tokens,
    retokenize_main,
    settle,
)
from prefork.engines.text.formats.chat_lines import (
    BULLETS,
    FINAL_BULLET,
    Tier,
    find_times,
    get_line_end,
    list_tiers,
    make_bullet,
    make_media_header,
)
from prefork.engines.text.mor import render_gra, render_mor

_INNER_BULLET = re.compile(rf"([ \t]?){BULLETS.pattern}")
_LANGUAGE = re.compile(r"^[^:]*:\s*(\[- [^\]]+\])")
_UNLINKED = re.compile(r",[ \t]*unlinked\b")
_BEFORE_MEDIA = ("@ID", "@Options", "@Participants", "@Languages", "@Begin")  # what @Media stands behind, best first


def render(document: Document) -> str:
    """The source of a CHAT document with what is new of the document's times and grammar."""
    tiers = list(list_tiers(document.source))
    mains = [tier.text for tier in tiers if tier.is_main]
    retimed = [_has_new_times(u, main) for u, main in zip(document.utterances, mains, strict=True)]
    if any(retimed):
        tiers = _link(tiers, document)
    utterances = zip(document.utterances, read_utterances(tiers), _list_grammar(document, tiers), retimed, strict=True)
    result: list[str] = []
    newline = get_line_end(tiers[0].text) if tiers else ""
    block: list[Tier] = []  # a main line, its dependent tiers, and empty lines among them
    for tier in tiers:
        if block and tier.text.strip() and not tier.name.startswith("%"):
            result.append(_render_block(block, newline, *next(utterances)))
            block = []
        if tier.is_main or block:
            block.append(tier)
        else:
            result.append(tier.text)
    if block:
        result.append(_render_block(block, newline, *next(utterances)))
    return "".join(result)


def _has_new_times(utterance: Utterance, main: str) -> bool:
    times = (utterance.start, utterance.end)
    if not make_bullet(*times):
        return False
    return times != find_times(main) or any(word.start is not None for word in utterance.words)


def _link(tiers: Sequence[Tier], document: Document) -> list[Tier]:
    """The tiers of a transcript that has times, and so must say of what."""
    if any(tier.name == "@Media" for tier in tiers):
        return [
            Tier(tier.name, _UNLINKED.sub("", tier.text), tier.line) if tier.name == "@Media" else tier
            for tier in tiers
        ]
    header = make_media_header(document.media, video=document.video, linked=True)
    if not header:
        return list(tiers)
    place = max(place for place, tier in enumerate(tiers) if tier.name == _choose(tiers)) + 1
    media = Tier("@Media", header + get_line_end(tiers[place - 1].text), 0)
    return [*tiers[:place], media, *tiers[place:]]


def _choose(tiers: Sequence[Tier]) -> str:
    """The header that @Media stands behind."""
    names = {tier.name for tier in tiers}
    return next(name for name in _BEFORE_MEDIA if name in names)


def find_losses(document: Document) -> Iterator[str]:
    """What the source has and the output has not, for its user."""
    tiers = list(list_tiers(document.source))
    mains = [tier for tier in tiers if tier.is_main]
    if not any(len(BULLETS.findall(main.text)) > 1 for main in mains):
        return
    lost = [
        main.line
        for main, utterance, parsed in zip(mains, document.utterances, read_utterances(tiers), strict=True)
        if _has_new_times(utterance, main.text) and "" in _list_inner_bullets(utterance, list_chat_tokens(parsed))
    ]
    if lost:
        more = f", and {len(lost) - 1} more such lines" if len(lost) > 1 else ""
        yield f"line {lost[0]}{more}: bullets between words that have no times are gone"


@dataclass(frozen=True, slots=True)
class _Grammar:
    """What is to stand in a main line's block. main: the line, if its words were cut anew."""

    mor: str
    gra: str
    main: str | None = None


def _list_grammar(document: Document, tiers: Sequence[Tier]) -> Iterator[_Grammar | None]:
    """For each utterance its tiers, without the line ends; None where there is nothing to write."""
    analysed = [is_analysed(utterance.tokens) for utterance in document.utterances]
    left = find_uncountable(document) if any(analysed) else frozenset()
    mains = [tier.text for tier in tiers if tier.is_main]
    for number, (main, utterance) in enumerate(zip(mains, document.utterances, strict=True)):
        if analysed[number] and number not in left:
            yield _make_grammar(main, utterance.tokens, document.languages)
        else:
            yield None


def _make_grammar(main: str, tokens: Sequence[Token], languages: Sequence[str]) -> _Grammar:
    placed, language = place_tokens(main, languages)
    cut = any(token.source is not None for token in tokens)
    if cut:
        tokens = settle([one.token for one in placed], tokens)
    elif len(tokens) != len(placed):
        raise ValueError(f"{len(tokens)} tokens without a source for the {len(placed)} of {main!r}")
    if not any(token.kind is TokenKind.TERMINATOR for token in tokens):  # the tiers have one all the same
        tokens = (*tokens, Token(".", TokenKind.TERMINATOR))
    mor = render_mor(tokens, language or (languages[0] if languages else ""))
    written = retokenize_main(main, placed, [token for token in tokens if token.source]) if cut else None
    return _Grammar(f"%mor:\t{mor}", f"%gra:\t{render_gra(tokens)}", written)


def find_uncountable(document: Document) -> frozenset[int]:
    """Utterances, counted from 0, that get no %mor: rustling's strict reader would want another number of items than
    TalkBank's rules. These are lines with contours or marks of their own (`↗`, `+≈`, `°xxx°`), or that are no CHAT.
    """
    tiers = list(list_tiers(document.source))
    try:
        read = list_utterances(read_lines(tiers, make_countable))
    except ValueError:  # it is CHAT to `parse` alone, and no reader's count is to be met
        return frozenset()
    mains = [tier.text for tier in tiers if tier.is_main]
    return frozenset(
        number
        for number, (main, parsed) in enumerate(zip(mains, read, strict=True))
        if len(list_tokens(main, document.languages)[0]) not in _count(main, parsed)
    )


def _count(main: str, parsed: Parsed) -> tuple[int, ...]:
    """How many items rustling wants, without a terminator where the main line has none: it may take its contour for
    one, or want none, where TalkBank's parser always wants one."""
    count = len(parsed.tokens or ())
    return (count,) if find_terminator(main) else (count - 1, count)


def _render_block(
    block: Sequence[Tier],
    newline: str,
    utterance: Utterance,
    parsed: Parsed,
    grammar: _Grammar | None,
    retimed: bool,
) -> str:
    main = grammar.main if grammar and grammar.main is not None else block[0].text
    texts = [main, *(tier.text for tier in block[1:])]
    names = [tier.name for tier in block]
    if utterance.missing:
        texts[0] = _remove_bullet(main)
    elif retimed:
        tokens = list_chat_tokens(parsed)
        texts[0] = _set_bullet(_set_inner_bullets(main, utterance, tokens), utterance)
        wor = _make_wor(utterance, tokens, block[0].text)
        if wor is not None:
            known = names.index("%wor") if "%wor" in names else None
            if known is not None:
                texts[known] = wor + get_line_end(texts[known])
            else:
                last = max(index for index, text in enumerate(texts) if text.strip())
                _insert(texts, last + 1, wor, newline)
                names.insert(last + 1, "%wor")
    if grammar is None:
        return "".join(texts)
    ended = get_line_end(texts[-1])
    texts = [text for text, name in zip(texts, names, strict=True) if name not in TIERS]
    _insert(texts, 1, grammar.mor, newline)
    _insert(texts, 2, grammar.gra, newline)
    result = "".join(texts)
    return result if ended else result[: len(result) - len(get_line_end(result))]


def _insert(texts: list[str], index: int, tier: str, newline: str) -> None:
    """Puts a tier behind those before it, of which the last may end with the file, and not with its line."""
    end = get_line_end(texts[index - 1])
    if end:
        texts.insert(index, tier + end)
    else:
        texts.insert(index, newline + tier)


def _remove_bullet(main: str) -> str:
    known = FINAL_BULLET.search(main)
    return main[: known.start()].rstrip() + main[known.end() :] if known else main


def _set_bullet(main: str, utterance: Utterance) -> str:
    """The main line with the utterance's times."""
    bullet = make_bullet(utterance.start, utterance.end)
    known = FINAL_BULLET.search(main)
    if known is None:
        body = main.rstrip()
        return f"{body} {bullet}{main[len(body) :]}"
    if bullet == make_bullet(int(known[1]) / 1000, int(known[2]) / 1000):
        return main
    return main[: known.start()] + bullet + main[known.end() :]


def _set_inner_bullets(main: str, utterance: Utterance, tokens: Sequence[ChatToken]) -> str:
    """The main line with each bullet between its words over those of them that stand before it, up to the bullet before
    that; without it, where none of these has a time."""
    bullets = iter(_list_inner_bullets(utterance, tokens))
    final = FINAL_BULLET.search(main)
    end = final.start() if final else len(main)
    return _INNER_BULLET.sub(lambda old: (new := next(bullets)) and old[1] + new, main[:end]) + main[end:]


def _list_inner_bullets(utterance: Utterance, tokens: Sequence[ChatToken]) -> list[str]:
    words = iter(utterance.words)
    stretches: list[list[Word]] = [[]]
    for token in tokens:
        if token.kind is ChatKind.BULLET:
            stretches.append([])
        elif token.kind in (ChatKind.WORD, ChatKind.SOUND):
            stretches[-1].append(next(words))
    return [_span(stretch) for stretch in stretches[:-1]]


def _span(words: Sequence[Word]) -> str:
    starts = [word.start for word in words if word.start is not None]
    ends = [word.end for word in words if word.end is not None]
    return make_bullet(min(starts, default=None), max(ends, default=None))


def _make_wor(utterance: Utterance, tokens: Sequence[ChatToken], main: str) -> str | None:
    """The %wor tier, without its line end; None if no word that it would hold has a time."""
    words = iter(utterance.words)
    language = _LANGUAGE.match(main)
    parts = [language[1]] if language else []
    timed = False
    for token in tokens:
        word = next(words) if token.kind in (ChatKind.WORD, ChatKind.SOUND) else None
        if token.kind in (ChatKind.SOUND, ChatKind.BULLET):
            continue
        parts.append(word.text if word else token.text)
        if word and (bullet := make_bullet(word.start, word.end)):
            parts.append(bullet)
            timed = True
    return " ".join(["%wor:\t" + " ".join(parts), find_terminator(main) or "."]) if timed else None
