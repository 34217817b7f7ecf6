"""Who speaks when: pyannote, and who said which word."""
