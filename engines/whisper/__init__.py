"""Whisper: transcription, language, and word times.

asr and aligner are the engines; checkpoint is the model on disk, model at work, attention and timing give word times,
decoding, rules and windows the text.
"""
