#!lua flags=allow-oom
-- Where the line stands, for Postgres to remember, how far Postgres lets its numbers go, and how far Postgres is behind.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   freed           zset    what the waiting list has
--   stock_freed     hash    variant_id -> units that the waiting list has
-- ARGV
--   epoch
--   queue_no_ceiling
-- RETURNS
--   checkpoint              version serving queue_no queue_no_ceiling outbox_behind journal_behind stranded product_changes
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A ceiling is written to Postgres before it is written here, so that a counter which is lost can go on from it. Safe to
-- repeat: it only rises.
local freed = KEYS[2]
local stock_freed = KEYS[3]
local epoch = ARGV[1]
local queue_no_ceiling = tonumber(ARGV[2])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Change.
if queue_no_ceiling > term("queue_no_ceiling") then
  set_term("queue_no_ceiling", queue_no_ceiling)
end
return {
  "checkpoint", term("version"), term("serving"), term("queue_no"), term("queue_no_ceiling"),
  term("outbox_n") - term("outbox_persisted_n"), term("journal_n") - term("journal_persisted_n"),
  sale.waiting_list == "1" and 0 or redis.call("ZCARD", freed) + redis.call("HLEN", stock_freed),
  term("product_changes"),
}
