#!lua flags=no-writes
-- What of the seat map changed after a version: every seat that did, with what it is to the public now.
--
-- USES
--   sale
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    seat_no -> state hold_id fence
--   map_changes     zset    seat_no, scored by the map_version of its last change
-- ARGV
--   epoch
--   since
--   most
-- RETURNS
--   changes                 version left rows...
--   changes_unknown         version
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A row is "seat_no state". At most `most` and the rest of one change: with something left, ask again since the version
-- that was answered. Of a version of another epoch, or of none yet, nothing is known: then the map is read whole.
local seats = KEYS[2]
local map_changes = KEYS[3]
local epoch = ARGV[1]
local since = tonumber(ARGV[2])
local most = tonumber(ARGV[3])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local version = term("map_version")
if since > version or math.floor(since / 1e9) ~= math.floor(version / 1e9) then
  return { "changes_unknown", version }
end
local after = "(" .. string.format("%.0f", since)
local changed = redis.call("ZRANGEBYSCORE", map_changes, after, "+inf", "WITHSCORES", "LIMIT", 0, most)
local seat_nos, left = {}, 0
for at = 1, #changed, 2 do
  seat_nos[#seat_nos + 1] = changed[at]
end
if #seat_nos == most then
  -- The last change is told whole, so that all up to the version answered has been heard.
  version = tonumber(changed[#changed])
  local exactly = string.format("%.0f", version)
  while #seat_nos > 0 and tonumber(changed[2 * #seat_nos]) == version do
    table.remove(seat_nos)
  end
  for _, seat_no in ipairs(redis.call("ZRANGEBYSCORE", map_changes, exactly, exactly)) do
    seat_nos[#seat_nos + 1] = seat_no
  end
  left = redis.call("ZCOUNT", map_changes, "(" .. exactly, "+inf")
end
local rows = {}
for _, seat_no in ipairs(seat_nos) do
  local state = string.match(redis.call("HGET", seats, seat_no) or "FREE", "%u+")
  rows[#rows + 1] = seat_no .. " " .. (state == "PAYING" and "HELD" or state)
end
return { "changes", version, left, unpack(rows) }
