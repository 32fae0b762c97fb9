-- The audit: questions whose every row is something wrong, and what is compared with Redis.
--
-- A question answers with at most $1 rows, each with the number of all that there are.

-- name: count_records
-- How much there is to look at.
SELECT
  (SELECT count(*) FROM seats) AS seats,
  (SELECT count(*) FROM product_variants) AS variants,
  (SELECT count(*) FROM reservations) AS reservations,
  (SELECT count(*) FROM orders) AS orders,
  (SELECT count(*) FROM user_coupons) AS user_coupons,
  (SELECT count(*) FROM payments) AS payments,
  (SELECT count(*) FROM balances) AS balances,
  (SELECT count(*) FROM balance_history) AS balance_history,
  (SELECT count(*) FROM tickets) AS tickets,
  (SELECT count(*) FROM queue_tokens) AS queue_tokens,
  (SELECT count(*) FROM refunds) AS refunds,
  (SELECT count(*) FROM late_payments) AS late_payments,
  (SELECT count(*) FROM restores) AS restores,
  (SELECT count(*) FROM waiting_list_entries) AS waiting_list_entries,
  (SELECT count(*) FROM applied_batches) AS applied_batches,
  (SELECT coalesce(sum(count), 0)::bigint FROM applied_batches) AS applied_entries;

-- name: list_sales
-- Every sale, oldest first, and since when its terms are what they are.
SELECT sale_id, kind, name, active_max, (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at_ms
FROM sales
WHERE kind <> 'coupon'
ORDER BY created_at, sale_id;

-- name: list_sources
-- Every source of coupons, oldest first.
SELECT coupon_id
FROM coupons
ORDER BY created_at, coupon_id;

-- name: read_clock
-- Now, in milliseconds.
SELECT (extract(epoch FROM now()) * 1000)::bigint;

-- I1: every seat is counted once ------------------------------------------------------------------------------------

-- name: find_miscounted_schedules
-- Schedules whose counts are not those of their seats.
SELECT schedule_id, seats_total, seats_available, seats, available, count(*) OVER () AS total
FROM (
  SELECT schedules.schedule_id, schedules.seats_total, schedules.seats_available,
    count(seats.seat_no) AS seats,
    count(seats.seat_no) FILTER (WHERE NOT seats.sold AND NOT seats.blocked) AS available
  FROM schedules
  LEFT JOIN seats USING (sale_id)
  GROUP BY schedules.schedule_id
) AS counted
WHERE seats_total <> seats OR seats_available <> available
ORDER BY schedule_id
LIMIT $1;

-- name: find_miscounted_variants
-- Variants of which more or less is left than nobody has bought.
SELECT sale_id, variant_id, initial_quantity, quantity, bought, count(*) OVER () AS total
FROM (
  SELECT
    variants.sale_id, variants.variant_id, variants.initial_quantity, variants.quantity,
    coalesce(sum(lines.quantity - lines.refunded_quantity), 0)::bigint AS bought
  FROM product_variants AS variants
  LEFT JOIN order_items AS lines ON lines.variant_id = variants.variant_id AND lines.status = 'SOLD'
  GROUP BY variants.variant_id
) AS counted
WHERE quantity <> initial_quantity - bought
ORDER BY sale_id, variant_id
LIMIT $1;

-- name: find_miscounted_coupons
-- Sources whose coupons are not those that are left and those that users have.
SELECT coupon_id AS sale_id, initial_quantity, quantity, issued, count(*) OVER () AS total
FROM (
  SELECT coupons.coupon_id, coupons.initial_quantity, coupons.quantity, count(user_coupons.user_id) AS issued
  FROM coupons
  LEFT JOIN user_coupons USING (coupon_id)
  GROUP BY coupons.coupon_id
) AS counted
WHERE quantity + issued <> initial_quantity
ORDER BY coupon_id
LIMIT $1;

-- name: find_seats_claimed_twice
-- Seats with more than one live claim.
SELECT sale_id, seat_no, array_agg(reservation_id ORDER BY reservation_id) AS reservation_ids, count(*) OVER () AS total
FROM reservation_seats
WHERE status = 'CLAIMED'
GROUP BY sale_id, seat_no
HAVING count(*) > 1
ORDER BY sale_id, seat_no
LIMIT $1;

-- name: find_seats_sold_unclaimed
-- Seats that are sold without a claim, or claimed without being sold.
SELECT seats.sale_id, seats.seat_no, seats.sold, count(*) OVER () AS total
FROM seats
WHERE seats.sold <> EXISTS (
  SELECT FROM reservation_seats AS claim
  WHERE claim.sale_id = seats.sale_id AND claim.seat_no = seats.seat_no AND claim.is_claimed
)
ORDER BY seats.sale_id, seats.seat_no
LIMIT $1;

-- name: find_unfounded_claims
-- Claims of reservations that are not confirmed, and confirmed reservations that claim nothing.
SELECT reservation_id, status, claims, count(*) OVER () AS total
FROM (
  SELECT reservations.reservation_id, reservations.status,
    count(*) FILTER (WHERE reservation_seats.status = 'CLAIMED') AS claims
  FROM reservations
  LEFT JOIN reservation_seats USING (reservation_id)
  GROUP BY reservations.reservation_id
) AS claimed
WHERE (claims > 0) <> (status = 'CONFIRMED')
ORDER BY reservation_id
LIMIT $1;

-- I2: what was heard is true ----------------------------------------------------------------------------------------

-- name: find_heard
-- What stands of these payments.
SELECT payment_id, payments.status, payments.final_amount, payments.user_id, payments.sale_id, payments.reservation_id,
  reservations.status AS reservation_status, reservations.confirmed_at IS NOT NULL AS was_confirmed,
  ARRAY(
    SELECT seat_no
    FROM reservation_seats
    WHERE reservation_seats.reservation_id = payments.reservation_id
      AND (
        reservation_seats.status = 'CLAIMED'
        -- Bought, and given back since.
        OR EXISTS (
          SELECT FROM cancellations
          WHERE cancellations.reservation_id = payments.reservation_id
            AND reservation_seats.seat_no = ANY (cancellations.seat_nos)
        )
      )
  ) AS seats,
  ARRAY(
    SELECT unnest(seat_nos) FROM cancellations WHERE cancellations.reservation_id = payments.reservation_id
  ) AS given_back
FROM payments
LEFT JOIN reservations USING (reservation_id)
WHERE payment_id = ANY ($1::uuid[]);

-- name: find_heard_orders
-- What stands of these payments of orders; a line says what was bought, given back since or not.
SELECT payments.payment_id, payments.status, payments.final_amount, payments.user_id, payments.sale_id,
  payments.order_id, orders.status AS order_status, orders.paid_at IS NOT NULL AS was_paid,
  ARRAY(
    SELECT replace(lines.variant_id::text, '-', '') || ':' || lines.quantity
    FROM order_items AS lines
    WHERE lines.order_id = payments.order_id AND lines.status = 'SOLD'
  ) AS lines
FROM payments
JOIN orders USING (order_id)
WHERE payments.payment_id = ANY ($1::uuid[]);

-- name: find_heard_variants
-- How many units of these variants could be sold at all: each one ever there was, and once more whenever it came back.
SELECT variants.variant_id,
  variants.initial_quantity + coalesce(
    (
      SELECT sum(refunded_quantity)
      FROM order_items AS lines
      WHERE lines.variant_id = variants.variant_id AND lines.status = 'SOLD'
    ),
    0
  )::bigint AS units
FROM product_variants AS variants
WHERE variants.variant_id = ANY ($1::uuid[])
ORDER BY variants.variant_id;

-- name: find_redeemed
-- What stands of these tickets.
SELECT ticket_no, sale_id, seat_no, status, redeemed_at IS NOT NULL AS was_redeemed
FROM tickets
WHERE ticket_no = ANY ($1::bigint[]);

-- name: find_issued
-- Whose these coupons are.
SELECT user_coupon_id, coupon_id, user_id
FROM user_coupons
WHERE user_coupon_id = ANY ($1::uuid[]);

-- I3: one charge for one sale ---------------------------------------------------------------------------------------

-- name: find_double_charges
-- Reservations and orders that were charged more than once, or have more than one live payment.
SELECT hold_id, array_agg(payment_id ORDER BY payment_id) AS payment_ids, count(*) OVER () AS total
FROM payments
WHERE is_live
GROUP BY hold_id
HAVING count(*) > 1
ORDER BY hold_id
LIMIT $1;

-- name: find_uneven_charges
-- Confirmed reservations that were not charged once, or for another sum than their seats come to, whoever has these now;
-- and charges for what was never confirmed.
SELECT reservation_id, status, amount, charged, charges, price, count(*) OVER () AS total
FROM (
  SELECT reservations.reservation_id, reservations.status, reservations.amount, reservations.confirmed_at,
    coalesce(sum(payments.original_amount), 0)::bigint AS charged, count(payments.payment_id) AS charges,
    CASE WHEN reservations.confirmed_at IS NOT NULL THEN (
      SELECT coalesce(sum(price), 0)::bigint
      FROM reservation_seats AS lines
      WHERE lines.reservation_id = reservations.reservation_id
        AND (
          lines.status = 'CLAIMED'
          OR EXISTS (
            SELECT FROM cancellations
            WHERE cancellations.reservation_id = lines.reservation_id AND lines.seat_no = ANY (cancellations.seat_nos)
          )
        )
    ) END AS price
  FROM reservations
  LEFT JOIN payments ON payments.reservation_id = reservations.reservation_id
    AND payments.status IN ('SUCCESS', 'UNCOLLECTED', 'PARTIALLY_REFUNDED', 'REFUNDED')
  GROUP BY reservations.reservation_id
) AS compared
WHERE CASE WHEN confirmed_at IS NULL THEN charges > 0 ELSE charges <> 1 OR charged <> amount OR price <> amount END
ORDER BY reservation_id
LIMIT $1;

-- name: find_strangers_money
-- Money that somebody else paid or got back: payments of what is another's, and changes of a balance that no payment of
-- its owner made.
SELECT what, id, user_id, count(*) OVER () AS total
FROM (
  SELECT 'payment' AS what, payment_id AS id, payments.user_id
  FROM payments
  LEFT JOIN reservations USING (reservation_id)
  LEFT JOIN orders ON orders.order_id = payments.order_id
  WHERE payments.user_id <> coalesce(reservations.user_id, orders.user_id)
  UNION ALL
  SELECT lower(history.type) || ' of ' || history.amount || ' by', history.ref_id, history.user_id
  FROM balance_history AS history
  LEFT JOIN payments USING (payment_id)
  WHERE history.type IN ('USE', 'REFUND') AND payments.user_id IS DISTINCT FROM history.user_id
) AS strange
ORDER BY what, id
LIMIT $1;

-- name: find_uneven_orders
-- Orders whose charge is not what their lines come to, that were charged and never paid, or whose status is not borne out
-- by what of them was given back.
SELECT order_id, status, total_amount, charged, price, bought, returned, count(*) OVER () AS total
FROM (
  SELECT
    orders.order_id, orders.status, orders.total_amount, orders.paid_at,
    (
      SELECT sum(final_amount)::bigint
      FROM payments
      WHERE payments.order_id = orders.order_id
        AND payments.status IN ('SUCCESS', 'UNCOLLECTED', 'PARTIALLY_REFUNDED', 'REFUNDED')
    ) AS charged,
    sum(lines.total_price)::bigint AS price,
    coalesce(sum(lines.quantity) FILTER (WHERE lines.status = 'SOLD'), 0)::bigint AS bought,
    sum(lines.refunded_quantity)::bigint AS returned
  FROM orders
  JOIN order_items AS lines USING (order_id)
  GROUP BY orders.order_id
) AS compared
WHERE price <> total_amount
  OR charged IS DISTINCT FROM CASE WHEN paid_at IS NOT NULL THEN total_amount END
  OR (paid_at IS NOT NULL) <> (bought > 0)
  OR (
    paid_at IS NOT NULL
    AND status <> CASE returned WHEN 0 THEN 'PAID' WHEN bought THEN 'REFUNDED' ELSE 'PARTIALLY_REFUNDED' END
  )
ORDER BY order_id
LIMIT $1;

-- name: find_uneven_lines
-- Lines of orders of which their buyer owns, or has given back, another number of units than was sold or cancelled.
SELECT order_id, variant_id, sold, refunded_quantity, cancelled, items, returned, count(*) OVER () AS total
FROM (
  SELECT
    lines.order_id, lines.variant_id, lines.refunded_quantity,
    CASE lines.status WHEN 'SOLD' THEN lines.quantity ELSE 0 END AS sold,
    coalesce(gone.quantity, 0) AS cancelled,
    count(items.item_id) AS items,
    count(items.returned_at) AS returned
  FROM order_items AS lines
  LEFT JOIN user_items AS items USING (order_id, variant_id)
  LEFT JOIN (
    SELECT order_id, variant_id, sum(quantity)::bigint AS quantity
    FROM cancellations
    CROSS JOIN LATERAL unnest(variant_ids, quantities) AS named (variant_id, quantity)
    WHERE order_id IS NOT NULL
    GROUP BY order_id, variant_id
  ) AS gone USING (order_id, variant_id)
  GROUP BY lines.order_id, lines.variant_id, gone.quantity
) AS counted
WHERE items <> sold OR returned <> refunded_quantity OR cancelled <> refunded_quantity
ORDER BY order_id, variant_id
LIMIT $1;

-- name: find_misused_coupons
-- Coupons of users that stand otherwise than the payments that name them: in use twice, or free and in use at once.
SELECT user_coupon_id, coupon_status, running, bought, strangers, count(*) OVER () AS total
FROM (
  SELECT
    mine.user_coupon_id, mine.status AS coupon_status, mine.payment_id,
    count(*) FILTER (WHERE named.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')) AS running,
    count(*) FILTER (
      WHERE named.status IN ('SUCCESS', 'UNCOLLECTED', 'PARTIALLY_REFUNDED')
        -- Refunded in full when the coupon could not be used any more: then it stays used.
        OR (named.status = 'REFUNDED' AND mine.payment_id = named.payment_id)
    ) AS bought,
    count(*) FILTER (WHERE named.user_id <> mine.user_id AND named.discount_amount > 0) AS strangers,
    bool_or(named.payment_id = mine.payment_id) AS is_named
  FROM user_coupons AS mine
  LEFT JOIN payments AS named USING (user_coupon_id)
  GROUP BY mine.user_coupon_id
) AS compared
WHERE strangers > 0
  OR running <> CASE coupon_status WHEN 'RESERVED' THEN 1 ELSE 0 END
  OR bought <> CASE coupon_status WHEN 'USED' THEN 1 ELSE 0 END
  OR (payment_id IS NOT NULL AND is_named IS NOT TRUE)
ORDER BY user_coupon_id
LIMIT $1;

-- name: find_uneven_discounts
-- Payments for seats of which a coupon took off another sum than its shares in the seats come to.
SELECT payment_id, discount_amount, shared, count(*) OVER () AS total
FROM (
  SELECT payments.payment_id, payments.discount_amount, sum(lines.discount_amount)::bigint AS shared
  FROM payments
  JOIN reservation_seats AS lines USING (reservation_id)
  WHERE payments.status IN ('SUCCESS', 'UNCOLLECTED', 'PARTIALLY_REFUNDED', 'REFUNDED')
  GROUP BY payments.payment_id
) AS compared
WHERE discount_amount <> shared
ORDER BY payment_id
LIMIT $1;

-- name: find_uneven_captures
-- Payments whose balance leg is not what their history took.
SELECT payment_id, status, captured, used, count(*) OVER () AS total
FROM (
  SELECT payments.payment_id, payments.status,
    CASE
      WHEN payments.status IN ('SUCCESS', 'UNCOLLECTED', 'PARTIALLY_REFUNDED', 'REFUNDED') THEN payments.balance_amount
      ELSE 0
    END AS captured,
    coalesce(sum(history.amount) FILTER (WHERE history.type = 'USE'), 0)::bigint AS used
  FROM payments
  LEFT JOIN balance_history AS history USING (payment_id)
  GROUP BY payments.payment_id
) AS compared
WHERE used <> captured
ORDER BY payment_id
LIMIT $1;

-- name: find_uneven_cards
-- Payments whose card leg is neither taken, nor to be taken, nor let go to give it back, nor known as lost; or taken for
-- nothing.
SELECT payment_id, status, card_amount, captured_amount, capture, void, count(*) OVER () AS total
FROM (
  SELECT payments.payment_id, payments.status, payments.card_amount, payments.captured_amount,
    captures.status AS capture, voids.status AS void,
    (
      SELECT sum(amount)
      FROM refunds
      WHERE refunds.payment_id = payments.payment_id AND refund_to = 'CARD' AND refunds.status <> 'FAILED'
    ) AS to_card
  FROM payments
  LEFT JOIN gateway_operations AS captures
    ON captures.payment_id = payments.payment_id AND captures.kind = 'CAPTURE'
  LEFT JOIN gateway_operations AS voids ON voids.payment_id = payments.payment_id AND voids.kind = 'VOID'
  WHERE payments.card_amount > 0
) AS legs
WHERE (CASE
  WHEN status IN ('SUCCESS', 'PARTIALLY_REFUNDED', 'REFUNDED')
    THEN (captured_amount = card_amount AND capture = 'DONE')
      OR (captured_amount = 0 AND (capture = 'PENDING' OR (void IS NOT NULL AND to_card = card_amount)))
  WHEN status = 'UNCOLLECTED' THEN captured_amount = 0 AND capture = 'REFUSED'
  ELSE captured_amount = 0 AND capture IS NULL
END) IS NOT TRUE
ORDER BY payment_id
LIMIT $1;

-- name: find_uneven_late_payments
-- Money that came late and neither bought once what it was for nor went back; or that both did.
SELECT gateway_ref, payment_id, status, reason, ended_status, new_status, void, count(*) OVER () AS total
FROM (
  SELECT late.gateway_ref, late.payment_id, late.status, late.reason, ended.status AS ended_status,
    bought.status AS new_status, bought.gateway_ref = late.gateway_ref AS has_money,
    voids.status AS void
  FROM late_payments AS late
  JOIN payments AS ended USING (payment_id)
  LEFT JOIN payments AS bought ON bought.payment_id = late.new_payment_id
  LEFT JOIN payments AS carrier ON carrier.gateway_ref = late.gateway_ref
  LEFT JOIN gateway_operations AS voids ON voids.payment_id = carrier.payment_id AND voids.kind = 'VOID'
) AS compared
WHERE ended_status NOT IN ('FAILED', 'VOIDED')
  OR (CASE status
    -- What was cancelled before its capture was sent is voided, too.
    WHEN 'SOLD' THEN has_money AND new_status IN ('SUCCESS', 'UNCOLLECTED', 'PARTIALLY_REFUNDED', 'REFUNDED')
    WHEN 'RETURNED' THEN coalesce(new_status IN ('FAILED', 'VOIDED'), true)
      AND (void IS NOT NULL OR reason IN ('money_gone', 'card_declined'))
    ELSE coalesce(has_money OR new_status = 'FAILED', true)
  END) IS NOT TRUE
ORDER BY gateway_ref
LIMIT $1;

-- name: find_uneven_card_charges
-- Charges by card that the history does not say, or says otherwise.
SELECT charge_id, status, amount, added, count(*) OVER () AS total
FROM (
  SELECT card_charges.charge_id, card_charges.status, card_charges.amount, history.amount AS added
  FROM card_charges
  LEFT JOIN balance_history AS history
    ON history.ref_type = 'charge' AND history.ref_id = card_charges.charge_id AND history.type = 'CHARGE'
    AND history.user_id = card_charges.user_id
) AS compared
WHERE added IS DISTINCT FROM CASE status WHEN 'SUCCESS' THEN amount END
ORDER BY charge_id
LIMIT $1;

-- name: find_uneven_refunds
-- Payments of which more is on its way back than was collected, or another sum than its refunds and its history say.
SELECT payment_id, status, collected, refunded_amount, refunds, captured_amount, to_card, to_balance, history,
  count(*) OVER () AS total
FROM (
  SELECT payments.payment_id, payments.status, payments.refunded_amount, payments.captured_amount, payments.final_amount,
    payments.balance_amount
      + CASE payments.status WHEN 'UNCOLLECTED' THEN payments.captured_amount ELSE payments.card_amount END AS collected,
    coalesce(gone.refunds, 0) AS refunds,
    coalesce(gone.to_card, 0) AS to_card,
    coalesce(gone.to_balance, 0) AS to_balance,
    coalesce(told.history, 0) AS history,
    EXISTS (
      SELECT FROM gateway_operations
      WHERE gateway_operations.payment_id = payments.payment_id AND kind = 'VOID'
    ) AS voided
  FROM payments
  LEFT JOIN (
    SELECT payment_id,
      sum(amount) FILTER (WHERE status <> 'FAILED')::bigint AS refunds,
      sum(amount) FILTER (WHERE status = 'DONE' AND refund_to = 'CARD')::bigint AS to_card,
      sum(amount) FILTER (WHERE status = 'DONE' AND refund_to = 'BALANCE')::bigint AS to_balance
    FROM refunds
    GROUP BY payment_id
  ) AS gone USING (payment_id)
  LEFT JOIN (
    SELECT payment_id, sum(amount)::bigint AS history
    FROM balance_history
    WHERE type = 'REFUND'
    GROUP BY payment_id
  ) AS told USING (payment_id)
) AS compared
WHERE refunded_amount > collected
  OR refunded_amount <> refunds
  OR history <> to_balance
  -- What was never taken is given back by not taking it.
  OR (to_card > captured_amount AND NOT voided)
  OR (refunded_amount > 0 AND status NOT IN ('PARTIALLY_REFUNDED', 'REFUNDED', 'UNCOLLECTED'))
  OR (status = 'REFUNDED' AND refunded_amount <> final_amount)
ORDER BY payment_id
LIMIT $1;

-- name: find_untold_refunds
-- Refunds to a card that stand otherwise than what its gateway was told of them: to refund, or to take nothing.
SELECT refunds.refund_id, refunds.status, coalesce(told.status, voids.status) AS told, count(*) OVER () AS total
FROM refunds
LEFT JOIN gateway_operations AS told ON told.refund_id = refunds.refund_id
LEFT JOIN gateway_operations AS voids ON voids.payment_id = refunds.payment_id AND voids.kind = 'VOID'
WHERE refund_to = 'CARD'
  AND coalesce(told.status, voids.status)
    IS DISTINCT FROM CASE refunds.status WHEN 'FAILED' THEN 'REFUSED' ELSE refunds.status END
ORDER BY refunds.refund_id
LIMIT $1;

-- name: find_uneven_cancellations
-- Cancellations whose refunds are not what they promised, that are about more than was paid for their seats, or whose
-- seats are still somebody's by the same reservation.
SELECT cancellation_id, hold_id, refund_amount, kept_amount, worth, refunds, claims, count(*) OVER () AS total
FROM (
  SELECT cancellations.cancellation_id, cancellations.refund_amount, cancellations.kept_amount,
    coalesce(cancellations.reservation_id, cancellations.order_id) AS hold_id,
    (
      SELECT sum(price - discount_amount)::bigint
      FROM reservation_seats AS lines
      WHERE lines.reservation_id = cancellations.reservation_id AND lines.seat_no = ANY (cancellations.seat_nos)
    ) AS worth,
    (
      SELECT coalesce(sum(amount), 0)::bigint
      FROM refunds
      WHERE refunds.cancellation_id = cancellations.cancellation_id
    ) AS refunds,
    (
      SELECT count(*)
      FROM reservation_seats AS claim
      WHERE claim.reservation_id = cancellations.reservation_id
        AND claim.seat_no = ANY (cancellations.seat_nos)
        AND claim.status <> 'ENDED'
    ) AS claims
  FROM cancellations
) AS compared
WHERE refund_amount <> refunds OR refund_amount + kept_amount > worth OR claims > 0
ORDER BY cancellation_id
LIMIT $1;

-- I4: one operation, one effect -------------------------------------------------------------------------------------

-- name: find_repeated_changes
-- Operations that changed a balance more than once.
SELECT ref_type, ref_id, type, count(*) AS times, count(*) OVER () AS total
FROM balance_history
GROUP BY ref_type, ref_id, type
HAVING count(*) > 1
ORDER BY ref_type, ref_id, type
LIMIT $1;

-- name: find_miscounted_tickets
-- Claims without exactly one valid or redeemed ticket.
SELECT claim.reservation_id, claim.seat_no, count(tickets.ticket_no) AS tickets, count(*) OVER () AS total
FROM reservation_seats AS claim
LEFT JOIN tickets ON tickets.reservation_id = claim.reservation_id AND tickets.seat_no = claim.seat_no
  AND tickets.status <> 'CANCELLED'
WHERE claim.status = 'CLAIMED'
GROUP BY claim.reservation_id, claim.seat_no
HAVING count(tickets.ticket_no) <> 1
ORDER BY claim.reservation_id, claim.seat_no
LIMIT $1;

-- name: find_seats_given_back_twice
-- Seats that a reservation gave back more than once.
SELECT reservation_id, seat_no, count(*) AS times, count(*) OVER () AS total
FROM cancellations
CROSS JOIN LATERAL unnest(seat_nos) AS given_back (seat_no)
GROUP BY reservation_id, seat_no
HAVING count(*) > 1
ORDER BY reservation_id, seat_no
LIMIT $1;

-- name: find_tickets_without_a_seat
-- Tickets that open a door for a seat that their reservation does not claim.
SELECT tickets.ticket_no, tickets.reservation_id, tickets.seat_no, tickets.status, count(*) OVER () AS total
FROM tickets
JOIN reservation_seats AS line USING (reservation_id, seat_no)
WHERE tickets.status <> 'CANCELLED' AND line.status <> 'CLAIMED'
ORDER BY tickets.ticket_no
LIMIT $1;

-- name: find_strayed_offers
-- Entries of a waiting list whose reservation or order is not what was wished for, or does not bear out what the entry says.
-- Of an order units may have been given back since.
SELECT entry_id, entries.status, entries.quantity, held.count, held.status AS hold_status, count(*) OVER () AS total
FROM waiting_list_entries AS entries
LEFT JOIN LATERAL (
  SELECT user_id, sale_id, status, confirmed_at AS bought_at, lines.count, lines.count = entries.quantity AS is_as_wished
  FROM reservations
  CROSS JOIN LATERAL (
    SELECT count(*) AS count FROM reservation_seats WHERE reservation_id = entries.hold_id
  ) AS lines
  WHERE reservation_id = entries.hold_id
  UNION ALL
  SELECT user_id, sale_id, status, paid_at, lines.count, lines.is_as_wished
  FROM orders
  CROSS JOIN LATERAL (
    SELECT
      sum(quantity)::bigint AS count,
      bool_and(variant_id = entries.variant_id AND quantity <= entries.quantity) AS is_as_wished
    FROM order_items
    WHERE order_id = entries.hold_id
  ) AS lines
  WHERE order_id = entries.hold_id
) AS held ON true
WHERE CASE
  WHEN held.status IS NULL THEN entries.status IN ('TAKEN', 'LAPSED')
  ELSE held.user_id <> entries.user_id
    OR held.sale_id <> entries.sale_id
    OR held.is_as_wished IS NOT TRUE
    OR (entries.status = 'TAKEN' AND held.bought_at IS NULL)
    OR (entries.status = 'LAPSED' AND (held.bought_at IS NOT NULL OR held.status = 'PENDING'))
END
ORDER BY entry_id
LIMIT $1;

-- I5: the line is kept ----------------------------------------------------------------------------------------------

-- name: find_owners_in_line_twice
-- Owners with more than one live token in one sale; one of an older epoch lives only once it is put back.
SELECT sale_id, owner, array_agg(queue_no ORDER BY queue_no) AS queue_nos, count(*) OVER () AS total
FROM queue_tokens
JOIN sales USING (sale_id, epoch)
WHERE status IN ('WAITING', 'ACTIVE')
GROUP BY sale_id, owner
HAVING count(*) > 1
ORDER BY sale_id, owner
LIMIT $1;

-- name: list_highest_admitted
-- The highest place that is or was inside, of each sale and epoch; who waits again was admitted in an older one.
SELECT sale_id, epoch, max(queue_no) AS queue_no
FROM queue_tokens
WHERE admitted_at IS NOT NULL AND status IN ('ACTIVE', 'PROCESSED')
GROUP BY sale_id, epoch;

-- name: find_hurried_minutes
-- Moments at which more people had been admitted within sixty seconds than the rate allows, under the terms of now.
SELECT sale_id, admitted_at, admitted, admitted_per_minute_max, count(*) OVER () AS total
FROM (
  SELECT sale_id, queue_tokens.admitted_at, sales.admitted_per_minute_max,
    count(*) OVER (
      PARTITION BY sale_id
      ORDER BY queue_tokens.admitted_at
      RANGE BETWEEN INTERVAL '60 seconds' PRECEDING AND CURRENT ROW
    ) AS admitted
  FROM queue_tokens
  JOIN sales USING (sale_id)
  -- What was admitted under earlier terms was admitted at an earlier rate.
  WHERE queue_tokens.admitted_at > sales.updated_at + INTERVAL '2 seconds'
) AS counted
WHERE admitted > admitted_per_minute_max
ORDER BY sale_id, admitted_at
LIMIT $1;

-- I6: every balance is the sum of its history -----------------------------------------------------------------------

-- name: find_uneven_balances
-- Balances that are not the sum of their history, or not where it ended, or whose funds set aside are not those of live
-- payments.
SELECT user_id, amount, set_aside, history, last_after, legs, version, last_version, count(*) OVER () AS total
FROM (
  SELECT balances.user_id, balances.amount, balances.set_aside, balances.version,
    coalesce(line.history, 0) AS history, coalesce(line.last_after, 0) AS last_after,
    coalesce(line.last_version, 0) AS last_version, coalesce(live.legs, 0) AS legs
  FROM balances
  LEFT JOIN (
    SELECT user_id,
      sum(CASE type WHEN 'USE' THEN -amount ELSE amount END)::bigint AS history,
      (array_agg(balance_after ORDER BY version DESC))[1] AS last_after,
      max(version) AS last_version
    FROM balance_history
    GROUP BY user_id
  ) AS line USING (user_id)
  LEFT JOIN (
    SELECT user_id, sum(balance_amount)::bigint AS legs
    FROM payments
    WHERE is_unsettled
    GROUP BY user_id
  ) AS live USING (user_id)
) AS compared
WHERE amount < 0 OR amount <> history OR amount <> last_after OR version <> last_version OR set_aside <> legs
ORDER BY user_id
LIMIT $1;

-- name: find_broken_history
-- Lines of history that do not follow from the line before.
SELECT user_id, version, balance_after, expected, count(*) OVER () AS total
FROM (
  SELECT user_id, version, balance_after,
    coalesce(lag(balance_after) OVER line, 0) + CASE type WHEN 'USE' THEN -amount ELSE amount END AS expected
  FROM balance_history
  WINDOW line AS (PARTITION BY user_id ORDER BY version)
) AS compared
WHERE balance_after <> expected
ORDER BY user_id, version
LIMIT $1;

-- I7: nothing is left half-done -------------------------------------------------------------------------------------

-- name: find_unfinished
-- What should have come to its end more than $2 seconds ago.
SELECT what, id, since, count(*) OVER () AS total
FROM (
  SELECT 'reservation' AS what, reservation_id AS id, expires_at AS since
  FROM reservations
  WHERE is_pending
    AND NOT EXISTS (
      SELECT FROM payments
      WHERE payments.reservation_id = reservations.reservation_id
        AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
    )
  UNION ALL
  SELECT 'order', order_id, expires_at
  FROM orders
  WHERE is_pending
    AND NOT EXISTS (
      SELECT FROM payments
      WHERE payments.order_id = orders.order_id AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
    )
  UNION ALL
  SELECT 'emptying of the cart of order', checkouts.order_id, orders.created_at
  FROM checkouts
  JOIN orders USING (order_id)
  WHERE checkouts.is_open
  UNION ALL
  -- A balance answers at once, and so does what is authorised; only a card may wait for its buyer.
  SELECT 'payment', payment_id, CASE WHEN method = 'BALANCE' OR status = 'AUTHORISED' THEN updated_at ELSE pay_deadline END
  FROM payments
  WHERE is_unsettled
  UNION ALL
  SELECT 'restore', hold_id, created_at
  FROM restores
  WHERE done_at IS NULL
  UNION ALL
  SELECT CASE WHEN blocked THEN 'blocking' ELSE 'unblocking' END || ' of seats', seat_block_id, created_at
  FROM seat_blocks
  WHERE done_at IS NULL
  UNION ALL
  -- What a gateway has begun is asked about again and again; how long it takes is its bank's business.
  SELECT lower(kind) || ' of payment', payment_id, CASE WHEN answer_ref IS NULL THEN created_at ELSE due_at END
  FROM gateway_operations
  WHERE is_pending
  UNION ALL
  SELECT 'charge', charge_id, CASE status WHEN 'AUTHORISED' THEN updated_at ELSE created_at + interval '1 hour' END
  FROM card_charges
  WHERE is_open
  UNION ALL
  -- Once its new payment lives, that is what must end.
  SELECT 'late money for payment', late_payments.payment_id, late_payments.updated_at
  FROM late_payments
  WHERE late_payments.status = 'PENDING'
    AND NOT EXISTS (
      SELECT FROM payments
      WHERE payments.payment_id = late_payments.new_payment_id
        AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
    )
  UNION ALL
  SELECT 'event that is off', schedule_id, updated_at
  FROM schedule_cancellations
  WHERE finished_at IS NULL
  UNION ALL
  -- Nobody may have noted that it was offered something: that is looked for twice a minute.
  SELECT 'entry of a waiting list', entry_id,
    CASE entries.status
      WHEN 'WAITING' THEN held.created_at + interval '1 minute'
      ELSE coalesce(held.ended_at, held.bought_at)
    END
  FROM waiting_list_entries AS entries
  CROSS JOIN LATERAL (
    SELECT status, created_at, ended_at, confirmed_at AS bought_at FROM reservations WHERE reservation_id = entries.hold_id
    UNION ALL
    SELECT status, created_at, ended_at, paid_at FROM orders WHERE order_id = entries.hold_id
  ) AS held
  WHERE entries.status = 'WAITING' OR (entries.status = 'OFFERED' AND held.status <> 'PENDING')
) AS unfinished
WHERE since < now() - make_interval(secs => $2)
ORDER BY since, id
LIMIT $1;

-- name: find_dead_letters
-- Entries that could not be applied: the word on a payment in doubt is an operator's, all else a rebuild answers.
SELECT
  sale_id,
  stream,
  n,
  kind,
  error,
  (SELECT status FROM payments WHERE payments.payment_id = dead_letters.payment_id)
    IS NOT DISTINCT FROM 'IN_DOUBT' AS is_in_doubt,
  count(*) OVER () AS total
FROM dead_letters
WHERE resolved_at IS NULL
ORDER BY created_at
LIMIT $1;

-- I9: at rest Redis says what Postgres says -------------------------------------------------------------------------

-- name: find_progress
-- Which copy of a sale counts, and how far each of its streams was applied.
SELECT sales.epoch, sales.store_state, sales.serving, sales.product_changes, stream_watermarks.stream,
  stream_watermarks.n, stream_watermarks.epoch AS watermark_epoch
FROM sales
LEFT JOIN stream_watermarks USING (sale_id)
WHERE sales.sale_id = $1;

-- name: list_sale_seats
-- The seats of a sale, each with the hold that claims it.
SELECT seats.seat_no, seats.price, seats.blocked, claim.reservation_id, reservations.fence
FROM seats
LEFT JOIN reservation_seats AS claim
  ON claim.sale_id = seats.sale_id AND claim.seat_no = seats.seat_no AND claim.is_claimed
LEFT JOIN reservations USING (reservation_id)
WHERE seats.sale_id = $1;

-- name: list_sale_variants
-- The variants of a sale of stock, each with all that there ever was of it, what nobody has bought, and what Redis counts
-- as bought.
SELECT
  variants.variant_id,
  variants.quantity,
  products.price,
  products.status = 'ON_SALE' AS on_sale,
  variants.initial_quantity,
  coalesce(sum(lines.counted), 0)::bigint AS bought
FROM product_variants AS variants
JOIN products USING (product_id)
LEFT JOIN order_items AS lines ON lines.variant_id = variants.variant_id AND lines.status = 'SOLD'
WHERE variants.sale_id = $1
GROUP BY variants.variant_id, products.product_id;

-- name: list_sale_holds
-- The holds of a sale that have not ended, each with its seats or its units.
SELECT reservation_id AS hold_id, user_id, fence, (extract(epoch FROM expires_at) * 1000)::bigint AS expires_at_ms,
  ARRAY(
    SELECT seat_no
    FROM reservation_seats
    WHERE reservation_seats.reservation_id = reservations.reservation_id AND reservation_seats.status = 'HELD'
  ) AS seats
FROM reservations
WHERE sale_id = $1 AND is_pending
UNION ALL
SELECT order_id, user_id, fence, (extract(epoch FROM expires_at) * 1000)::bigint,
  ARRAY(
    SELECT replace(variant_id::text, '-', '') || ':' || quantity
    FROM order_items
    WHERE order_items.order_id = orders.order_id AND order_items.status = 'HELD'
  )
FROM orders
WHERE sale_id = $1 AND is_pending;

-- name: count_sale_buyers
-- How many seats or units of a sale each buyer has.
SELECT reservations.user_id, count(*) AS bought
FROM reservation_seats AS claim
JOIN reservations USING (reservation_id)
WHERE claim.sale_id = $1 AND claim.is_claimed
GROUP BY reservations.user_id
UNION ALL
SELECT orders.user_id, sum(lines.counted)::bigint
FROM orders
JOIN order_items AS lines USING (order_id)
WHERE orders.sale_id = $1 AND lines.counted > 0
GROUP BY orders.user_id;

-- name: find_source
-- What there are and are left of a source, and the version of its terms.
SELECT initial_quantity, quantity, version
FROM coupons
WHERE coupon_id = $1;

-- name: list_source_users
-- Who has a coupon of a source.
SELECT user_id
FROM user_coupons
WHERE coupon_id = $1;

-- I13: every entry was applied once ---------------------------------------------------------------------------------

-- name: find_broken_ranges
-- Applied ranges that do not begin where the one before them ended.
SELECT sale_id, stream, epoch, first_n, last_n, expected, count(*) OVER () AS total
FROM (
  SELECT sale_id, stream, epoch, first_n, last_n,
    coalesce(lag(last_n) OVER (PARTITION BY sale_id, stream, epoch ORDER BY first_n), 0) + 1 AS expected
  FROM applied_batches
) AS compared
WHERE first_n <> expected
ORDER BY sale_id, stream, epoch, first_n
LIMIT $1;

-- name: find_strayed_watermarks
-- Watermarks that are not where the last applied range ended.
SELECT sale_id, stream, epoch, n, last_n, count(*) OVER () AS total
FROM (
  SELECT watermark.sale_id, watermark.stream, watermark.epoch, watermark.n, coalesce(max(applied.last_n), 0) AS last_n
  FROM stream_watermarks AS watermark
  LEFT JOIN applied_batches AS applied USING (sale_id, stream, epoch)
  GROUP BY watermark.sale_id, watermark.stream, watermark.epoch, watermark.n
) AS compared
WHERE n <> last_n
ORDER BY sale_id, stream
LIMIT $1;

-- Beside the invariants ---------------------------------------------------------------------------------------------

-- name: measure_persist_lag
-- How long a sale's payments took from the funds being set aside to the sale being durable, in milliseconds.
SELECT count(*) AS payments,
  coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY lag), 0) AS p50_ms,
  coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY lag), 0) AS p99_ms
FROM (
  SELECT extract(epoch FROM paid_at - authorised_at) * 1000 AS lag
  FROM payments
  WHERE sale_id = $1 AND status = 'SUCCESS'
) AS lags;

-- name: list_migrations
-- The migrations that this database has had.
SELECT version, name, checksum
FROM schema_migrations
ORDER BY version;

-- name: count_owned_sales
-- How many open sales there are, how many of them a living worker reads, and how many are closed to be rebuilt.
SELECT count(*) FILTER (WHERE sales.store_state = 'open') AS open,
  count(*) FILTER (WHERE sales.store_state = 'open' AND stream_owners.until > now()) AS owned,
  count(*) FILTER (WHERE sales.store_state IN ('frozen', 'rebuilding')) AS closed
FROM sales
LEFT JOIN stream_owners USING (sale_id);
