"""CTC models such as wav2vec2: word times, and times of utterances that have none."""
