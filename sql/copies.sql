-- Copies: payments for what is somebody else's in a new copy of a sale.

-- name: lock_balances
-- Balances of whoever these payments are from, in the order in which everybody locks them.
SELECT user_id
FROM balances
WHERE user_id IN (SELECT user_id FROM payments WHERE payment_id = ANY ($1::uuid[]))
ORDER BY user_id
FOR NO KEY UPDATE;

-- name: lock_payments
-- These payments, in the order in which everybody locks them.
SELECT payment_id
FROM payments
WHERE payment_id = ANY ($1::uuid[])
ORDER BY payment_id
FOR NO KEY UPDATE;

-- name: void_payments
-- What may still buy something buys nothing; answers what was set aside for each, by balance and by card.
UPDATE payments
SET status = 'VOIDED',
    reason = 'hold_ended',
    version = version + 1,
    updated_at = now()
WHERE payment_id = ANY ($1::uuid[])
  AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
RETURNING payment_id, user_id, balance_amount, card_amount, decline_code;

-- name: free_funds
-- Funds of voided payments are their users' again.
UPDATE balances
SET set_aside = set_aside - freed.amount,
    updated_at = now()
FROM (
  SELECT user_id, sum(amount)::bigint AS amount
  FROM unnest($1::uuid[], $2::bigint[]) AS voided (user_id, amount)
  GROUP BY user_id
) AS freed
WHERE balances.user_id = freed.user_id;
