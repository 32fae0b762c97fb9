-- Accounts: people, their sign-in, the operators' keys.

-- name: find_namesakes
-- Whoever has this id or this e-mail, to tell a repeated sign-up from a taken address.
SELECT user_id, email, name, password_hash, fingerprint
FROM users
WHERE user_id = $1
  OR lower(email) = lower($2::text);

-- name: add_user
-- A person who signs in with a password here. No row: the id or the e-mail is somebody's already.
INSERT INTO users (user_id, subject, email, password_hash, name, fingerprint)
VALUES ($1, $1::uuid::text, $2, $3, $4, $5)
ON CONFLICT DO NOTHING
RETURNING user_id;

-- name: add_balances
-- Everybody has one balance, from the first moment on.
INSERT INTO balances (user_id)
SELECT unnest($1::uuid[])
ON CONFLICT DO NOTHING;

-- name: add_users
-- People of a bulk request, who sign in by the tokens of its answer.
INSERT INTO users (user_id, subject, fingerprint)
SELECT user_id, user_id::text, $2
FROM unnest($1::uuid[]) AS wanted (user_id)
ON CONFLICT DO NOTHING;

-- name: count_strangers
-- How many of these people another request made.
SELECT count(*)
FROM users
WHERE user_id = ANY ($1::uuid[])
  AND fingerprint <> $2;

-- name: find_password
-- The password of whoever signs in with this e-mail.
SELECT user_id, password_hash
FROM users
WHERE lower(email) = lower($1::text);

-- name: find_user
-- One person as they see themselves.
SELECT user_id, email, name, created_at
FROM users
WHERE user_id = $1;

-- name: wipe_user
-- Forget who this was. The row stays, because the sales do; so does the fingerprint of a bulk request, which says nothing
-- of anybody, and which a repeat of the request is told by.
UPDATE users
SET
  email = NULL,
  name = NULL,
  password_hash = NULL,
  fingerprint = CASE WHEN email IS NULL THEN fingerprint ELSE '' END,
  wiped_at = coalesce(wiped_at, now()),
  updated_at = now()
WHERE user_id = $1
RETURNING user_id, email, name, created_at;

-- name: find_wiped
-- Whose tokens count no longer, of those wiped lately.
SELECT user_id
FROM users
WHERE wiped_at > now() - make_interval(secs => $1);

-- name: find_api_key
-- The key that an operator presents, unless it was revoked.
SELECT api_key_id, name, scopes
FROM api_keys
WHERE key_hash = $1
  AND revoked_at IS NULL;

-- name: list_api_keys
-- Every operator's key, the newest first.
SELECT api_key_id, name, scopes, created_at, revoked_at
FROM api_keys
ORDER BY created_at DESC, api_key_id DESC;

-- name: revoke_api_key
-- A key ends now; one that has ended keeps its moment.
UPDATE api_keys
SET revoked_at = coalesce(revoked_at, now())
WHERE api_key_id = $1
RETURNING api_key_id, name, scopes, created_at, revoked_at;

-- name: add_api_key
-- A new key; the same key again changes nothing.
INSERT INTO api_keys (api_key_id, key_hash, name, scopes)
VALUES ($1, $2, $3, $4)
ON CONFLICT (key_hash) DO NOTHING;
