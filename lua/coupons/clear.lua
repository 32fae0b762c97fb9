#!lua flags=allow-oom
-- Begin a source of coupons anew in a new epoch: everything of it is forgotten, its terms are written.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the source's terms and counters
--   issued          hash
--   outbox          stream
--   journal         stream
-- ARGV
--   epoch
--   terms...
-- RETURNS
--   cleared
--   stale_epoch             epoch
--
-- Terms are name, value, name, value … Safe to repeat: an epoch clears once, so a late copy wipes nothing.
local epoch = ARGV[1]

-- Check.
if sale.epoch == epoch then
  return { "cleared" }
end
if sale.epoch and tonumber(sale.epoch) > tonumber(epoch) then
  return { "stale_epoch", sale.epoch }
end

-- Change.
redis.call("UNLINK", unpack(KEYS))
redis.call("HSET", KEYS[1], "epoch", epoch, "state", "rebuilding", "now_ms", now_ms, "outbox_n", 0, "journal_n", 0)
for at = 2, #ARGV, 2 do
  redis.call("HSET", KEYS[1], ARGV[at], ARGV[at + 1])
end
return { "cleared" }
