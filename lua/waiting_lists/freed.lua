#!lua flags=no-writes
-- What the waiting list has: seats that were freed and not given on yet, the longest ago first.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   freed           zset    what the waiting list has, scored by the millisecond it was freed
-- ARGV
--   epoch
--   most
-- RETURNS
--   freed                   now_ms left rows...
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A row is "seat_no freed_at_ms"; `left` is how many there are beyond these.
local freed = KEYS[2]
local epoch = ARGV[1]
local most = tonumber(ARGV[2])

local refusal = unavailable(epoch)
if refusal then return refusal end

local rows = {}
local listed = redis.call("ZRANGE", freed, 0, most - 1, "WITHSCORES")
for at = 1, #listed, 2 do
  rows[#rows + 1] = listed[at] .. " " .. listed[at + 1]
end
return { "freed", now_ms, redis.call("ZCARD", freed) - #rows, unpack(rows) }
