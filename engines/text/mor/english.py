"""English verbs whose past tense or past participle is not in -ed."""

from __future__ import annotations

# A verb, its past tense, and its participle if that is another; forms that vary are joined with a slash.
_VERBS = """
abide abode, arise arose arisen, awake awoke awoken, be was/were been, bear bore borne/born, beat beat beaten,
become became become, beget begot/begat begotten, begin began begun, behold beheld, bend bent, bereave bereft,
beseech besought, beset beset, bet bet, bid bid/bade bidden, bind bound, bite bit bitten, bleed bled, blow blew blown,
break broke broken, breed bred, bring brought, broadcast broadcast, build built, burn burnt, burst burst, bust bust,
buy bought, cast cast, catch caught, choose chose chosen, cling clung, come came come, cost cost, creep crept, cut cut,
deal dealt, dig dug, dive dove, do did done, draw drew drawn, dream dreamt, drink drank drunk, drive drove driven,
dwell dwelt, eat ate eaten, fall fell fallen, feed fed, feel felt, fight fought, find found, fit fit, flee fled,
fling flung, fly flew flown, forbid forbade/forbad forbidden, forget forgot forgotten, forgive forgave forgiven,
forgo forwent forgone, forsake forsook forsaken, freeze froze frozen, get got gotten, gild gilt, give gave given,
go went gone, grind ground, grow grew grown, hang hung, have had, hear heard, hew hewn, hide hid hidden, hit hit,
hold held, hurt hurt, inlay inlaid, input input, inset inset, keep kept, kneel knelt, knit knit, know knew known,
lay laid, lead led, lean leant, leap leapt, learn learnt, leave left, lend lent, let let, lie lay lain, light lit,
lose lost, make made, mean meant, meet met, mow mown, offset offset, pay paid, plead pled, prove proven, put put,
quit quit, read read, rend rent, rid rid, ride rode ridden, ring rang rung, rise rose risen, run ran run, saw sawn,
say said, see saw seen, seek sought, sell sold, send sent, set set, sew sewn, shake shook shaken, shave shaven,
shear shorn, shed shed, shine shone, shit shat, shoot shot, show shown, shrink shrank/shrunk shrunk, shut shut,
sing sang sung, sink sank/sunk sunk, sit sat, slay slew slain, sleep slept, slide slid, sling slung, slink slunk,
slit slit, smell smelt, smite smote smitten, sneak snuck, sow sown, speak spoke spoken, speed sped, spell spelt,
spend spent, spill spilt, spin spun, spit spit/spat, split split, spoil spoilt, spread spread,
spring sprang/sprung sprung, stand stood, steal stole stolen, stick stuck, sting stung, stink stank/stunk stunk,
stride strode stridden, strike struck stricken, string strung, strive strove striven, strew strewn,
swear swore sworn, sweep swept, swell swollen, swim swam swum, swing swung, take took taken, teach taught,
tear tore torn, tell told, think thought, throw threw thrown, thrust thrust, tread trod trodden, wake woke woken,
waylay waylaid, wear wore worn, weave wove woven, wed wed, weep wept, wet wet, win won, wind wound, wring wrung,
write wrote written
"""
_PREFIXES = ("fore", "inter", "mis", "out", "over", "par", "pre", "re", "un", "under", "up", "with")


def _read(verbs: str) -> dict[str, frozenset[str]]:
    entries = (entry.split() for entry in verbs.split(","))
    return {lemma: frozenset(form for part in parts for form in part.split("/")) for lemma, *parts in entries}


_FORMS = _read(_VERBS)


def is_irregular(lemma: str, form: str) -> bool:
    """Whether the form is an irregular past of the verb, or of the one that it derives from: undid, overtook.

    >>> is_irregular("go", "Went"), is_irregular("go", "goed"), is_irregular("undo", "undone")
    (True, False, True)
    """
    lemma, form = lemma.lower(), form.lower()
    if form in _FORMS.get(lemma, ()):
        return True
    prefixes = (prefix for prefix in _PREFIXES if lemma.startswith(prefix) and form.startswith(prefix))
    return any(form[len(prefix) :] in _FORMS.get(lemma[len(prefix) :], ()) for prefix in prefixes)
