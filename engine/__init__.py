"""The library: what is scarce is held, then confirmed, released or expired."""
