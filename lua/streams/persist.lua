#!lua flags=allow-oom
-- Postgres has a stream up to this number: say so to whoever waits and in the sale, and forget the entries before it.
--
-- USES
--   sale
-- KEYS
--   sale     hash    the sale's terms and counters
--   outbox   stream
--   journal  stream
-- ARGV
--   epoch
--   name
--   n
--   entry_id
--   channel
--   message
-- RETURNS
--   persisted  trimmed
--   sale_unknown
--   stale_epoch  epoch
--
-- `name` is outbox or journal; an empty `message` is said to nobody. It is said from here, because then it depends on no
-- node of a cluster but the sale's own, and whatever became of the sale. The entry itself stays: it is what the next one
-- names as its predecessor. A closed sale is answered too. Safe to repeat, and in any order.
local epoch = ARGV[1]
local name = ARGV[2]
local n = tonumber(ARGV[3])
local entry_id = ARGV[4]
local channel = ARGV[5]
local message = ARGV[6]

if message ~= "" then
  redis.call("PUBLISH", channel, message)
end
if not sale.epoch then
  return { "sale_unknown" }
end
if sale.epoch ~= epoch then
  return { "stale_epoch", sale.epoch }
end

-- Change.
if n > term(name .. "_persisted_n") then
  set_term(name .. "_persisted_n", n)
end
return { "persisted", redis.call("XTRIM", KEYS[name == "outbox" and 2 or 3], "MINID", entry_id) }
