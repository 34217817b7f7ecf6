"""Words to times: what the aligners of all model families have in common."""
