"""Fork safety: what `prefork check` tries, and what it says about it."""
