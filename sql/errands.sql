-- What a gateway must be told: written by who decides it, taken by any worker, sent until the answer is known.

-- name: add_errands
-- One errand of a kind a payment, once.
INSERT INTO gateway_operations (operation_id, payment_id, amount, kind)
SELECT operation_id, payment_id, amount, $4
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS told (operation_id, payment_id, amount)
ON CONFLICT DO NOTHING;

-- name: lock_void
-- The void of a payment, and how it stands; nobody takes or finishes it until this transaction ends.
SELECT operation_id, status FROM gateway_operations WHERE payment_id = $1 AND kind = 'VOID' FOR UPDATE;

-- name: reopen_void
-- A void that was answered is sent again, under another key and for what the gateway has now.
UPDATE gateway_operations
SET
  operation_id = $2, amount = $3, status = 'PENDING', attempts = 0, due_at = now(), answer_ref = NULL, error = NULL,
  done_at = NULL, updated_at = now()
WHERE payment_id = $1 AND kind = 'VOID' AND status <> 'PENDING';

-- name: take_errands
-- What is due, the longest waiting first: nobody else takes it for a while. A refund waits for its payment's capture.
WITH due AS (
  SELECT operation_id
  FROM gateway_operations AS errands
  WHERE is_pending AND due_at <= now()
    AND NOT (
      kind = 'REFUND' AND (
        SELECT status = 'PENDING'
        FROM gateway_operations AS captures
        WHERE captures.payment_id = errands.payment_id AND captures.kind = 'CAPTURE'
      ) IS TRUE
    )
  ORDER BY due_at
  LIMIT $1
  FOR UPDATE SKIP LOCKED
)
UPDATE gateway_operations AS errands
SET attempts = attempts + 1, due_at = now() + make_interval(secs => $2), updated_at = now()
FROM due, payments
WHERE errands.operation_id = due.operation_id AND payments.payment_id = errands.payment_id
RETURNING
  errands.operation_id AS errand_id, errands.payment_id, errands.kind, errands.refund_id, errands.amount,
  errands.attempts, errands.answer_ref, payments.gateway_ref;

-- name: postpone_errand
-- Nobody knows what became of it: the same again, later.
UPDATE gateway_operations
SET due_at = now() + make_interval(secs => $2), error = $3, updated_at = now()
WHERE operation_id = $1 AND status = 'PENDING';

-- name: await_errand
-- The gateway has begun it and will say later how it ended.
UPDATE gateway_operations
SET answer_ref = $2, due_at = now() + make_interval(secs => $3), updated_at = now()
WHERE operation_id = $1 AND status = 'PENDING';

-- name: lock_payments
-- Payments, in id order, so that what is written of their errands and refunds is written in one order.
SELECT payment_id FROM payments WHERE payment_id = ANY ($1::uuid[]) ORDER BY payment_id FOR NO KEY UPDATE;

-- name: finish_errands
-- The gateway has answered: each is done, or refused for good for a reason; returns those that were still open.
UPDATE gateway_operations AS errands
SET
  status = CASE WHEN answered.refusal IS NULL THEN 'DONE' ELSE 'REFUSED' END, error = answered.refusal,
  done_at = now(), updated_at = now()
FROM unnest($1::uuid[], $2::text[]) AS answered (operation_id, refusal)
WHERE errands.operation_id = answered.operation_id AND errands.status = 'PENDING'
RETURNING errands.operation_id;

-- name: keep_captured
-- What the gateway has taken.
UPDATE payments
SET captured_amount = taken.amount, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[]) AS taken (payment_id, amount)
WHERE payments.payment_id = taken.payment_id;

-- name: mark_uncollected
-- Sold, and the gateway will not take the money.
UPDATE payments
SET status = 'UNCOLLECTED', version = version + 1, updated_at = now()
WHERE payment_id = $1 AND status = 'SUCCESS';

-- name: finish_refund
-- The gateway has given it back.
UPDATE refunds SET status = 'DONE', done_at = now(), updated_at = now() WHERE refund_id = $1 AND status = 'PENDING';

-- name: fail_refund
-- The gateway will not give it back: the payment is refunded by so much less. Of one that it never took, nothing is there.
WITH failed AS (
  UPDATE refunds SET status = 'FAILED', updated_at = now()
  WHERE refund_id = $1 AND status = 'PENDING'
  RETURNING payment_id, amount
)
UPDATE payments
SET
  refunded_amount = refunded_amount - failed.amount,
  status = CASE
    WHEN EXISTS (
      SELECT FROM gateway_operations AS captures
      WHERE captures.payment_id = payments.payment_id AND captures.kind = 'CAPTURE' AND captures.status = 'REFUSED'
    ) THEN 'UNCOLLECTED'
    WHEN refunded_amount = failed.amount THEN 'SUCCESS'
    ELSE 'PARTIALLY_REFUNDED'
  END,
  version = version + 1, updated_at = now()
FROM failed
WHERE payments.payment_id = failed.payment_id
  AND payments.status IN ('PARTIALLY_REFUNDED', 'REFUNDED', 'UNCOLLECTED');

-- name: finish_refunds_by_void
-- Refunds of a card whose money was let go before it was taken: there is nothing more to give back.
UPDATE refunds
SET status = 'DONE', done_at = now(), updated_at = now()
WHERE payment_id = $1 AND refund_to = 'CARD' AND status = 'PENDING'
  AND NOT EXISTS (SELECT FROM gateway_operations WHERE gateway_operations.refund_id = refunds.refund_id);
