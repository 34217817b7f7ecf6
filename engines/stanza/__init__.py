"""Stanza: parts of speech, lemmas and dependencies."""
