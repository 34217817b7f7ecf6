"""Text: the document that all engines read and write, and what it is made of.

document is the data; formats reads and writes files; mor writes CHAT's grammar; utterances cuts words into utterances;
languages and spoken_numbers know codes and numerals.
"""
