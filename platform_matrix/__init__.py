"""What this machine may do: facts, hazards and, from them, what may be shared how. Never imports torch."""
