"""The background face."""
