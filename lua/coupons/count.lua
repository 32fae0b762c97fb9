#!lua flags=no-writes
-- Count what a source of coupons has, and how far Postgres is behind it.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the source's terms and counters
--   issued          hash    user_id -> number of the entry that issued a coupon to them
-- ARGV
--   epoch
-- RETURNS
--   counted_coupons         state version quantity issued outbox_behind
--   sale_unknown
--   stale_epoch             epoch
--
-- A closed source is counted, too: a rebuild asks before it opens one.
local issued = KEYS[2]
local epoch = ARGV[1]

if not sale.epoch then
  return { "sale_unknown" }
end
if sale.epoch ~= epoch then
  return { "stale_epoch", sale.epoch }
end

return {
  "counted_coupons", sale.state, term("version"), term("quantity"), redis.call("HLEN", issued),
  term("outbox_n") - term("outbox_persisted_n"),
}
