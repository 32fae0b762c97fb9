#!lua
-- Write what a sale that is being rebuilt offers beside its seats, a part of one key at a time.
--
-- USES
--   sale
--   rebuild
-- KEYS
--   sale            hash    the sale's terms and counters
--   tiers           hash    tier|category_no -> price|max
--   blocks          hash    block_no -> for whom and when
--   areas           hash    area -> area_no|category_no|block_no|quantity
--   units           hash    unit_no -> its record
--   sections        hash    section -> its units
--   categories      hash    category -> its units
--   places          zset    free places of areas
--   floor           string  a byte a position
--   bounds          string  a byte a unit
-- ARGV
--   epoch
--   name
--   rows...
-- RETURNS
--   loaded                  count
--   sale_open
--   sale_unknown
--   stale_epoch             epoch
--
-- Rows are field, value … of a hash, score, member … of `places`, and offset, bytes of a string. Safe to repeat.
local tiers = KEYS[2]
local blocks = KEYS[3]
local areas = KEYS[4]
local units = KEYS[5]
local sections = KEYS[6]
local categories = KEYS[7]
local places = KEYS[8]
local floor = KEYS[9]
local bounds = KEYS[10]
local epoch = ARGV[1]
local name = ARGV[2]
local rows = { unpack(ARGV, 3) }

local refusal = not_rebuilding(epoch)
if refusal then return refusal end

-- Change.
local hashes = {
  tiers = tiers, blocks = blocks, areas = areas, units = units, sections = sections, categories = categories,
}
local strings = { floor = floor, bounds = bounds }
for at = 1, #rows, 2 do
  if hashes[name] then
    redis.call("HSET", hashes[name], rows[at], rows[at + 1])
  elseif strings[name] then
    redis.call("SETRANGE", strings[name], rows[at], rows[at + 1])
  else
    redis.call("ZADD", places, rows[at], rows[at + 1])
  end
end
return { "loaded", #rows / 2 }
