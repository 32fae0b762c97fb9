#!lua
-- Note who polled near the front, and when the next poll promised to each is overdue.
--
-- USES
--   sale
-- KEYS
--   sale             hash    the sale's terms and counters
--   waiting          zset    owner -> queue number
--   alive            zset    queue number, scored by when its promised poll is overdue
-- ARGV
--   epoch
--   signs...         owner, queue number and overdue_in_ms of each person
-- RETURNS
--   signs            count
--   sale_unknown
--   stale_epoch      epoch
--   sale_rebuilding
--
-- Safe to repeat: the last sign of a person counts. Whoever was called or left meanwhile leaves none.
local waiting = KEYS[2]
local alive = KEYS[3]
local epoch = ARGV[1]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local people = {}
for at = 2, #ARGV, 3 do
  people[#people + 1] = ARGV[at]
end
local places = #people > 0 and redis.call("ZMSCORE", waiting, unpack(people)) or {}

-- Change.
local count = 0
for person, place in ipairs(places) do
  local at = 3 * person
  if place and tonumber(place) == tonumber(ARGV[at]) then
    redis.call("ZADD", alive, now_ms + ARGV[at + 1], ARGV[at])
    count = count + 1
  end
end
return { "signs", count }
