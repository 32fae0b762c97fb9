#!lua
-- Write which numbers of the line are known to have ended, so that none of them is put back.
--
-- USES
--   sale
--   rebuild
-- KEYS
--   sale            hash    the sale's terms and counters
--   ended_tokens    hash    queue_no -> how it ended
--   ended_tokens_at zset    queue_no, scored by the millisecond it ended
-- ARGV
--   epoch
--   rows...
-- RETURNS
--   loaded                  count
--   sale_open
--   sale_unknown
--   stale_epoch             epoch
--
-- A row is queue_no, the record of `ended_tokens`, the millisecond it ended at. Safe to repeat.
local ended_tokens = KEYS[2]
local ended_tokens_at = KEYS[3]
local epoch = ARGV[1]

local refusal = not_rebuilding(epoch)
if refusal then return refusal end

-- Change.
for at = 2, #ARGV, 3 do
  redis.call("HSET", ended_tokens, ARGV[at], ARGV[at + 1])
  redis.call("ZADD", ended_tokens_at, ARGV[at + 2], ARGV[at])
end
return { "loaded", (#ARGV - 1) / 3 }
