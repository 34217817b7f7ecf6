"""The Rev.ai service."""
