#!lua flags=no-writes
-- What was told to everybody who waits for a sale lately, the oldest first.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   messages        zset    message_id text, scored by the millisecond it was sent at
-- ARGV
--   epoch
--   told_ms
-- RETURNS
--   messages                message_no now_ms rows...
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A row is "at_ms message_id text"; what was sent `told_ms` ago is told no more.
local messages = KEYS[2]
local epoch = ARGV[1]
local told_ms = tonumber(ARGV[2])

local refusal = unavailable(epoch)
if refusal then return refusal end

local since = string.format("(%.0f", now_ms - told_ms)
local found = redis.call("ZRANGEBYSCORE", messages, since, "+inf", "WITHSCORES")
local rows = {}
for at = 1, #found, 2 do
  rows[#rows + 1] = string.format("%.0f", math.floor(tonumber(found[at + 1]))) .. " " .. found[at]
end
return { "messages", term("message_no"), now_ms, unpack(rows) }
