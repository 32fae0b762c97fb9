-- The keys that passes are signed with: one row of the installation, so that all processes share them.

-- name: add_pass_keys
-- The first keys, unless another process was quicker.
INSERT INTO installation (name, value)
VALUES ('pass_keys', $1)
ON CONFLICT (name) DO NOTHING;

-- name: find_pass_keys
-- The keys as they stand.
SELECT value
FROM installation
WHERE name = 'pass_keys';

-- name: lock_pass_keys
-- The keys and the database's clock, for a rotation that is decided from both.
SELECT value, (extract(EPOCH FROM now()) * 1000)::bigint AS now_ms
FROM installation
WHERE name = 'pass_keys'
FOR UPDATE;

-- name: edit_pass_keys
-- The keys after a rotation.
UPDATE installation
SET value = $1, updated_at = now()
WHERE name = 'pass_keys';
