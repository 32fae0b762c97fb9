-- Balances: one a user, and the history that adds up to it.

-- name: find_balance
-- One user's balance.
SELECT amount, set_aside, version
FROM balances
WHERE user_id = $1;

-- name: lock_balance
-- Whoever changes a balance locks it first.
SELECT amount, version
FROM balances
WHERE user_id = $1
FOR UPDATE;

-- name: find_charge
-- A charge by its id: what a repeat is answered with. One by card has it from its beginning.
SELECT amount, balance_after, fingerprint, created_at
FROM balance_history
WHERE ref_type = 'charge'
  AND ref_id = $1
  AND type = 'CHARGE'
UNION ALL
SELECT amount, NULL, fingerprint, created_at
FROM card_charges
WHERE charge_id = $1;

-- name: set_balance
-- The balance after a change, in the transaction that locked it.
UPDATE balances
SET
  amount = $2,
  version = $3,
  updated_at = now()
WHERE user_id = $1;

-- name: add_charge
-- The history's row of a charge.
INSERT INTO balance_history (user_id, type, amount, balance_after, version, reason, ref_type, ref_id, fingerprint)
VALUES ($1, 'CHARGE', $2, $3, $4, $5, 'charge', $6, $7)
RETURNING created_at;

-- name: list_history
-- Newest first, from below a version on.
SELECT type, amount, balance_after, version, reason, payment_id, created_at
FROM balance_history
WHERE user_id = $1
  AND ($2::bigint IS NULL OR version < $2)
ORDER BY version DESC
LIMIT $3;

-- name: lock_balances
-- Balances of these users, locked in id order.
SELECT user_id
FROM balances
WHERE user_id = ANY ($1::uuid[])
ORDER BY user_id
FOR UPDATE;

-- name: add_charges
-- The same amount for each of these users, whose balances are locked; one row a charge, whoever asks again.
INSERT INTO balance_history (user_id, type, amount, balance_after, version, reason, ref_type, ref_id)
SELECT wanted.user_id, 'CHARGE', $3, balances.amount + $3, balances.version + 1, $4, 'charge', wanted.charge_id
FROM unnest($1::uuid[], $2::uuid[]) AS wanted (user_id, charge_id)
JOIN balances USING (user_id)
WHERE NOT EXISTS (
  SELECT
  FROM balance_history
  WHERE ref_type = 'charge'
    AND ref_id = wanted.charge_id
)
RETURNING user_id;

-- name: raise_balances
-- The other half of `add_charges`.
UPDATE balances
SET
  amount = amount + $2,
  version = version + 1,
  updated_at = now()
WHERE user_id = ANY ($1::uuid[]);
