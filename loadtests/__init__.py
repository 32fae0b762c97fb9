"""Journeys, benchmarks and the audit, which speak to Lastseat from outside."""
