"""CTC models such as wav2vec2: word times, and times of utterances that have none.

aligner and recovery are the engines; checkpoint is the model on disk, padding puts inputs of unequal length together.
"""
