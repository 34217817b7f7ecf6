"""Stanza: parts of speech, lemmas and dependencies.

tagger is the engine; models finds and loads stanza's files, retokenization settles whose tokens stand.
"""
