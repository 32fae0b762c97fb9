-- Charges by card: the gateway takes the money first, then the balance grows.

-- name: add_charge
-- A charge that begins, once for its id.
INSERT INTO card_charges (charge_id, user_id, amount, payment_method_id, return_url, fingerprint)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (charge_id) DO NOTHING;

-- name: find_charge
-- A charge, with what the balance was after it.
SELECT card_charges.*, history.balance_after
FROM card_charges
LEFT JOIN balance_history AS history
  ON history.ref_type = 'charge' AND history.ref_id = card_charges.charge_id AND history.type = 'CHARGE'
WHERE charge_id = $1;

-- name: find_told
-- The charge that a gateway knows by this name.
SELECT charge_id FROM card_charges WHERE gateway_ref = $1;

-- name: keep_ref
-- What the gateway said: its name for it, and where the buyer must go, or that the money is set aside.
UPDATE card_charges
SET gateway_ref = $2, action_url = $3, status = $4, updated_at = now()
WHERE charge_id = $1 AND status IN ('PENDING', 'AUTHORISED');

-- name: lock_balance
-- The balance that grows.
SELECT amount, version FROM balances WHERE user_id = $1 FOR UPDATE;

-- name: finish_charge
-- The money is taken, or will not be.
UPDATE card_charges
SET
  status = $2, decline_code = $3, gateway_ref = coalesce(gateway_ref, $4), action_url = NULL, done_at = now(),
  updated_at = now()
WHERE charge_id = $1 AND status IN ('PENDING', 'AUTHORISED');

-- name: list_open
-- Charges that have not moved for a while, oldest first, and whether their time is over.
SELECT charge_id, created_at < now() - make_interval(secs => $2) AS overdue
FROM card_charges
WHERE is_open AND updated_at < now() - make_interval(secs => $1)
ORDER BY updated_at
LIMIT $3;
