"""Who speaks when, and who said which word.

diarizer and assignment are the engines; pyannote_pipeline opens the models, chunks cuts a recording up for them and
puts their results together, ge2e is a small model of voices.
"""
