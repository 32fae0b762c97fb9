#!lua flags=allow-oom
-- Begin a sale anew in a new epoch: everything of it is forgotten, its terms and its line's counters are written.
--
-- The line goes on where Postgres knows that no number was given out, and the past minute counts as full: nobody can say
-- any more how many were admitted in it.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   admissions      hash    second -> people admitted in it
--   outbox          stream
--   journal         stream
--   prices          hash
--   map_changes     zset
--   messages        zset
--   tiers           hash
--   tier_counts     hash
--   blocks          hash
--   areas           hash
--   places          zset
--   units           hash
--   floor           string
--   bounds          string
--   sections        hash
--   categories      hash
--   freed           zset
--   stock           hash
--   stock_freed     hash
--   stock_total     hash
--   restored        hash
--   seats           hash
--   holds           hash
--   deadlines       zset
--   paying          zset
--   ended           zset
--   buyers          hash
--   waiting         zset
--   alive           zset
--   tokens          hash
--   active          zset
--   skipped         zset
--   returned        zset
--   ended_tokens    hash
--   ended_tokens_at zset
--   gone            zset
--   ties            hash
-- ARGV
--   epoch
--   admitted
--   terms...
-- RETURNS
--   cleared
--   stale_epoch             epoch
--
-- Terms are name, value, name, value … Safe to repeat: an epoch clears once, so a late copy wipes nothing.
local admissions = KEYS[2]
local epoch = ARGV[1]
local admitted = tonumber(ARGV[2])

-- Check.
if sale.epoch == epoch then
  return { "cleared" }
end
if sale.epoch and tonumber(sale.epoch) > tonumber(epoch) then
  return { "stale_epoch", sale.epoch }
end

-- Change.
redis.call("UNLINK", unpack(KEYS))
local first = string.format("%.0f", tonumber(epoch) * 1000000000)
-- What every hold writes stands first: a small hash is looked through from its beginning.
redis.call(
  "HSET", KEYS[1], "journal_n", 0, "fence", first, "map_version", first, "now_ms", now_ms, "outbox_n", 0,
  "epoch", epoch, "state", "rebuilding", "message_no", first
)
for at = 3, #ARGV, 2 do
  redis.call("HSET", KEYS[1], ARGV[at], ARGV[at + 1])
end
if admitted > 0 then
  redis.call("HSET", admissions, math.floor(now_ms / 1000), admitted)
end
return { "cleared" }
