-- What operators tell everybody who waits for a sale.

-- name: add_message
-- A message, once for its id; no row when it was sent before.
INSERT INTO messages (message_id, sale_id, text, api_key_id)
VALUES ($1, $2, $3, $4)
ON CONFLICT (message_id) DO NOTHING
RETURNING message_id, text, created_at;

-- name: find_message
-- What was sent under this id.
SELECT message_id, text, created_at FROM messages WHERE message_id = $1;

-- name: list_messages
-- The messages of a sale, newest first, after a cursor.
SELECT message_id, text, created_at
FROM messages
WHERE sale_id = $1 AND (created_at, message_id) < ($2::timestamptz, $3::uuid)
ORDER BY created_at DESC, message_id DESC
LIMIT $4;

-- name: list_told
-- The messages of a sale that are still told to who comes, newest first.
SELECT message_id, text, created_at
FROM messages
WHERE sale_id = $1 AND created_at > now() - make_interval(secs => $2)
ORDER BY created_at DESC, message_id DESC
LIMIT $3;
