"""The result cache: what was computed once, by what it was computed from."""
