#!lua flags=allow-oom
-- What the owner of a sale looks at once a second: where its streams end and how far Postgres is behind them, where the
-- line stands and how far Postgres lets its numbers go, and what is due.
--
-- USES
--   sale
--   heads
-- KEYS
--   sale            hash    the sale's terms and counters
--   freed           zset    what the waiting list has
--   stock_freed     hash    variant_id -> units that the waiting list has
--   outbox          stream
--   journal         stream
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond it is free
--   paying          zset    hold_id of what is PAYING, scored by its pay deadline
--   ended           zset    hold_id of what ended or was sold, scored by the millisecond it did
-- ARGV
--   epoch
--   queue_no_ceiling
-- RETURNS
--   checkpoint              outbox_counter outbox_n outbox_id journal_counter journal_n journal_id version serving queue_no queue_no_ceiling outbox_behind journal_behind stranded product_changes lapsed overdue
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A ceiling is written to Postgres before it is written here, so that a counter which is lost can go on from it. Safe to
-- repeat: it only rises. `lapsed` holds are to end, or to be forgotten; `overdue` payments are past their deadline.
local freed = KEYS[2]
local stock_freed = KEYS[3]
local outbox = KEYS[4]
local journal = KEYS[5]
local deadlines = KEYS[6]
local paying = KEYS[7]
local ended = KEYS[8]
local epoch = ARGV[1]
local queue_no_ceiling = tonumber(ARGV[2])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Change.
if queue_no_ceiling > term("queue_no_ceiling") then
  set_term("queue_no_ceiling", queue_no_ceiling)
end
local outbox_n, outbox_id = head_of(outbox)
local journal_n, journal_id = head_of(journal)
return {
  "checkpoint", term("outbox_n"), outbox_n, outbox_id, term("journal_n"), journal_n, journal_id,
  term("version"), term("serving"), term("queue_no"), term("queue_no_ceiling"),
  term("outbox_n") - term("outbox_persisted_n"), term("journal_n") - term("journal_persisted_n"),
  sale.waiting_list == "1" and 0 or redis.call("ZCARD", freed) + redis.call("HLEN", stock_freed),
  term("product_changes"),
  redis.call("ZCOUNT", deadlines, "-inf", now_ms)
    + redis.call("ZCOUNT", ended, "-inf", now_ms - term("repeat_window_ms")),
  redis.call("ZCOUNT", paying, "-inf", now_ms),
}
