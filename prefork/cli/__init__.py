"""The commands, their options, and what the terminal shows."""
