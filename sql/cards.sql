-- The card leg of payments: what the gateway said, written down before anything follows from it. A payment in doubt whose
-- card is authorised is no business of these: a fact about it waits for an operator.

-- name: keep_authorised
-- The gateway holds the money for these, each under its name there; returns those that were waiting for it.
UPDATE payments
SET
  status = 'AUTHORISED', gateway_ref = told.ref, action_url = NULL, authorised_at = now(), version = version + 1,
  updated_at = now()
FROM (
  SELECT payment_id, ref
  FROM unnest($1::uuid[], $2::text[]) AS told (payment_id, ref)
  JOIN payments USING (payment_id)
  ORDER BY payment_id
  FOR NO KEY UPDATE OF payments
) AS told
WHERE payments.payment_id = told.payment_id
  AND (status = 'PENDING' OR (status = 'IN_DOUBT' AND gateway_ref IS NULL))
  AND (gateway_ref IS NULL OR gateway_ref = told.ref)
RETURNING payments.payment_id;

-- name: keep_ref
-- The gateway's name for it; whatever is to be told of it is told by this. What was in doubt has been found.
UPDATE payments
SET gateway_ref = $2, status = CASE status WHEN 'IN_DOUBT' THEN 'PENDING' ELSE status END, updated_at = now()
WHERE payment_id = $1 AND gateway_ref IS NULL;

-- name: await_action
-- The buyer must say yes at this address first.
UPDATE payments
SET status = 'PENDING', gateway_ref = $2, action_url = $3, version = version + 1, updated_at = now()
WHERE payment_id = $1
  AND (status = 'PENDING' OR (status = 'IN_DOUBT' AND gateway_ref IS NULL))
  AND (gateway_ref IS DISTINCT FROM $2 OR action_url IS DISTINCT FROM $3);

-- name: doubt_card
-- It was asked for, and nobody knows what became of that.
UPDATE payments
SET status = 'IN_DOUBT', version = version + 1, updated_at = now()
WHERE payment_id = $1 AND status = 'PENDING' AND gateway_ref IS NULL;

-- name: keep_declined
-- Why the gateway said no; the payment itself ends once its hold is given up.
UPDATE payments
SET
  decline_code = $2, gateway_ref = coalesce(gateway_ref, $3), status = 'PENDING', action_url = NULL, updated_at = now()
WHERE payment_id = $1 AND (status = 'PENDING' OR (status = 'IN_DOUBT' AND gateway_ref IS NULL));

-- name: list_open
-- Payments of a sale that a gateway is still to be asked about and that have not moved for a while, oldest first; those
-- that only wait for their buyer come after all others, however many they are.
SELECT *, pay_deadline < now() AS overdue
FROM payments
WHERE sale_id = $1 AND is_unsettled AND card_amount > 0
  AND (status = 'PENDING' OR (status = 'IN_DOUBT' AND gateway_ref IS NULL))
  AND updated_at < now() - make_interval(secs => $2)
ORDER BY (action_url IS NOT NULL AND pay_deadline >= now()), updated_at
LIMIT $3;

-- name: find_told
-- The payment that a gateway knows by this name, or else the one whose id it was given.
SELECT *
FROM payments
WHERE gateway_ref = $1 OR (payment_id = $2::uuid AND card_amount > 0 AND gateway_ref IS NULL)
ORDER BY (gateway_ref = $1) DESC NULLS LAST
LIMIT 1;

-- name: add_event
-- What a gateway told us, once; nothing when it was told before.
INSERT INTO webhook_events (event_id, type, gateway_ref)
VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING;
