#!lua flags=allow-oom
-- Tell everybody who waits for a sale a message: whoever reads its map sees that there is one.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   messages        zset    message_id text, scored by the millisecond it was sent at, and its fraction
-- ARGV
--   epoch
--   message_id
--   at_ms
--   most
--   text
-- RETURNS
--   message_sent            message_no
--   sale_unknown
--   stale_epoch             epoch
--
-- The newest `most` are kept. Also while the sale is written anew: the rebuild and the sender may both bring the same
-- message. Safe to repeat: it is sent once.
local messages = KEYS[2]
local epoch = ARGV[1]
local message_id = ARGV[2]
local at_ms = ARGV[3]
local most = tonumber(ARGV[4])
local text = ARGV[5]

-- Check.
if not sale.epoch then
  return { "sale_unknown" }
end
if sale.epoch ~= epoch then
  return { "stale_epoch", sale.epoch }
end
local message = message_id .. " " .. text
if redis.call("ZSCORE", messages, message) then
  return { "message_sent", term("message_no") }
end

-- Change.
redis.call("ZADD", messages, at_ms, message)
redis.call("ZREMRANGEBYRANK", messages, 0, -1 - most)
return { "message_sent", count_up("message_no") }
