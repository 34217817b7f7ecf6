"""Words to times: what the aligners of all model families have in common.

forced_aligner is the base of the aligners, on windows and viterbi; recovery, word_matching (an engine),
sparse_alignment and anchors find utterances without times; seams joins the words of windows that overlap.
"""
