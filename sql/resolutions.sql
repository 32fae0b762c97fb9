-- What operators decide of payments in doubt.

-- name: add_resolution
-- An operator's word, once for its id; nothing when it was said before.
INSERT INTO payment_resolutions (resolution_id, payment_id, resolution, note, api_key_id)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (resolution_id) DO NOTHING;

-- name: find_resolution
-- What was said under this id.
SELECT payment_id, resolution, note FROM payment_resolutions WHERE resolution_id = $1;
