"""A command's run: the corpus, the plan, the journal, the performance log, the summary."""
