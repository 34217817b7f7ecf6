"""Text: the document, the formats that it is read from and written to, morphology, languages."""
