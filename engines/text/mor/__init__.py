"""TalkBank's %mor and %gra in their current style, which is that of Universal Dependencies (UD).

Where the rules stand:

[mor]    https://talkbank.github.io/chatter/chat-format/mor-tier.html: the style, its divergences from UD
[gra]    book/src/reference/gra-format.md of https://github.com/TalkBank/batchalign3: %gra as it is to be written
[ba]     crates/batchalign-chat-ops/src/nlp of the same: which features, in which order, by default what; how a lemma
         is cleaned. The corpora have these defaults, so they are kept even where UD says nothing (`adj|red-S1`)
[check]  grammar/grammar.js and talkbank-model of https://github.com/TalkBank/chatter: what a tier may hold
[align]  spec/docs/ALIGNMENT_RULES.md of the same: what of a main line has an item

The rules:

- An item per token, `part-of-speech|lemma-Feature-Feature`; UD's part of speech in lower case [mor 1], the features'
  values without their names, in a fixed order [mor 2], several values of one with their commas [mor 3].
- The syntactic words of a token are joined with `~` in UD's order, first to last [mor, Clitics]. There are no
  prefixes, no pre-clitics and no compounds: `ice+cream` is `noun|icecream` [mor 7].
- `,` is `cm|cm`, `„` `end|end`, `‡` `beg|beg` [align]; the terminator stands for itself.
- A word with a special form marker is `marker|word`, without features; one of another language is `L2|xxx`
  [batchalign3, book/src/reference/l2-handling.md]. User-defined markers (`@z:...`) change nothing.
- %gra has an entry per syntactic word, tag marker and terminator: `number|head|RELATION`, UD's relation in upper case
  with `-` for `:`, head 0 for the root [gra]. A terminator that was analysed is where the analysis puts it; one that
  was not is PUNCT of the root.

Where this module departs from [ba]: symbols are `sym|`, not `x|`, and Japanese words keep the analyser's part of
speech, so that it can be read back; the first word of a token stays first; a dual is `D`, not `S`; `thing` is no
gerund, but `undid` irregular; `_` stays within a lemma, as [mor, Multi-Word Expression Lemmas] wishes; a point between
digits becomes `_`.

What can be read back: head and relation of everything, the part of speech of all but words with special form markers.
What cannot: the text, features by name, the lemma's marks (`o'clock` is `oclock`), XPOS.
"""

from prefork.engines.text.mor.features import REFINEMENTS, Refinement
from prefork.engines.text.mor.tiers import (
    PARTS_OF_SPEECH,
    RELATIONS,
    MorWord,
    Relation,
    check_tree,
    find_upos,
    read_gra,
    read_mor,
    render_gra,
    render_mor,
)

__all__ = [
    "PARTS_OF_SPEECH",
    "REFINEMENTS",
    "RELATIONS",
    "MorWord",
    "Refinement",
    "Relation",
    "check_tree",
    "find_upos",
    "read_gra",
    "read_mor",
    "render_gra",
    "render_mor",
]
