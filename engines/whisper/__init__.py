"""Whisper: transcription, language, and word times."""
