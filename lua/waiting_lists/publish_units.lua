#!lua flags=allow-oom
-- Give the public units that were freed and nobody who waits is to have.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   stock           hash    variant_id -> units left
--   stock_freed     hash    variant_id -> units that the waiting list has
--   freed           zset    variant_id of what the waiting list has, scored by the millisecond it was first listed
-- ARGV
--   epoch
--   lines...
-- RETURNS
--   published_units         count
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A line is "variant_id:quantity"; of more than the waiting list has, all that it has is given, and what stays came later and
-- waits anew. Postgres never heard that these were anything but left, so there is no entry. A repeat makes no units: what it
-- gives, the waiting list has not.
local stock = KEYS[2]
local stock_freed = KEYS[3]
local freed = KEYS[4]
local epoch = ARGV[1]
local lines = { unpack(ARGV, 2) }

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Change.
local count = 0
for _, line in ipairs(lines) do
  local variant_id, quantity = string.match(line, "^(.+):(%d+)$")
  local shelved = tonumber(redis.call("HGET", stock_freed, variant_id) or "0")
  local given = math.min(shelved, tonumber(quantity))
  redis.call("ZREM", freed, variant_id)
  if given == shelved then
    redis.call("HDEL", stock_freed, variant_id)
  else
    redis.call("HINCRBY", stock_freed, variant_id, string.format("%d", -given))
  end
  if given > 0 then
    redis.call("HINCRBY", stock, variant_id, string.format("%d", given))
    count = count + given
  end
end
return { "published_units", count }
