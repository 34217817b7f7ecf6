"""Parquet data sets: which columns hold what, which rows pass, and the bytes of one recording.

A row's recording has a path of its own, below its file (row_path); the audio reader opens it like any other, and rows
reads it. pyarrow starts threads as soon as it is imported, so that no process may fork after it: only functions import
it, in the supervisor's process, which never forks, and in workers.
"""
