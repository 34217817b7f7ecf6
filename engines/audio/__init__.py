"""Sound: recordings, and samples out of them.

reader gives mono samples at 16 kHz, from what recording decodes; speech_regions finds where to cut; log_mel holds the
tables of Whisper's spectrogram; media tells recordings by their names.
"""
