-- Discounts: a user's coupon is reserved with the payment that names it, used when that succeeds, free when it ends.
--
-- Coupons are locked before balances, each by id.

-- name: lock_coupons
-- These coupons, locked in id order.
SELECT *, now() AS now
FROM user_coupons
WHERE user_coupon_id = ANY ($1::uuid[])
ORDER BY user_coupon_id
FOR NO KEY UPDATE;

-- name: lock_coupons_of_payments
-- The coupons that these payments name, locked in id order.
SELECT user_coupon_id
FROM user_coupons
WHERE user_coupon_id = ANY (ARRAY(SELECT user_coupon_id FROM payments WHERE payment_id = ANY ($1::uuid[])))
ORDER BY user_coupon_id
FOR NO KEY UPDATE;

-- name: lock_coupons_of_holds
-- The coupons that payments of these holds name, locked in id order.
SELECT user_coupon_id
FROM user_coupons
WHERE user_coupon_id = ANY (
  ARRAY(
    SELECT user_coupon_id
    FROM payments
    WHERE (hold_id = ANY ($1::uuid[]) AND is_live) OR (hold_id = ANY ($1::uuid[]) AND NOT is_live)
  )
)
ORDER BY user_coupon_id
FOR NO KEY UPDATE;

-- name: reserve
-- Coupons that these payments may use.
UPDATE user_coupons
SET status = 'RESERVED', payment_id = named.payment_id, updated_at = now()
FROM unnest($1::uuid[], $2::uuid[]) AS named (user_coupon_id, payment_id)
WHERE user_coupons.user_coupon_id = named.user_coupon_id AND user_coupons.status = 'AVAILABLE';

-- name: use
-- Coupons of payments that succeeded.
UPDATE user_coupons
SET
  status = 'USED', used_at = now(), order_id = payments.order_id, reservation_id = payments.reservation_id,
  updated_at = now()
FROM payments
WHERE payments.payment_id = ANY ($1::uuid[])
  AND user_coupons.user_coupon_id = payments.user_coupon_id
  AND user_coupons.payment_id = payments.payment_id
  AND user_coupons.payment_id = ANY ($1::uuid[])
  AND user_coupons.status = 'RESERVED';

-- name: free
-- Coupons of payments that ended without a sale.
UPDATE user_coupons
SET status = 'AVAILABLE', payment_id = NULL, updated_at = now()
WHERE payment_id = ANY ($1::uuid[]) AND status = 'RESERVED';

-- name: give_back
-- Coupons of payments that were refunded in full, while they may still be used. What a card has not got back yet may
-- still fail, so it does not count before it has.
UPDATE user_coupons
SET
  status = 'AVAILABLE', payment_id = NULL, used_at = NULL, order_id = NULL, reservation_id = NULL, updated_at = now()
FROM payments
WHERE payments.payment_id = ANY ($1::uuid[])
  AND payments.refunded_amount = payments.final_amount
  AND NOT EXISTS (SELECT FROM refunds WHERE refunds.payment_id = payments.payment_id AND refunds.status = 'PENDING')
  AND user_coupons.payment_id = payments.payment_id
  AND user_coupons.payment_id = ANY ($1::uuid[])
  AND user_coupons.status = 'USED'
  AND user_coupons.usable_to > now();

-- name: use_again
-- The coupon of a payment whose refund came back: what was bought is paid for again.
UPDATE user_coupons
SET
  status = 'USED', payment_id = payments.payment_id, used_at = now(), order_id = payments.order_id,
  reservation_id = payments.reservation_id, updated_at = now()
FROM payments
WHERE payments.payment_id = $1
  AND payments.refunded_amount < payments.final_amount
  AND user_coupons.user_coupon_id = payments.user_coupon_id
  AND user_coupons.status = 'AVAILABLE';
