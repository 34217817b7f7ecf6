"""Memory: measured, predicted, limited and logged."""
