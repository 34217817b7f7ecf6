"""Sound: recordings, and samples out of them."""
