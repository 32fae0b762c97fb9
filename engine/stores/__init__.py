"""How the engine speaks to Redis and Postgres at all."""
