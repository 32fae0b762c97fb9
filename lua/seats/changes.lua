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
--   changes                 version left message_no rows...
--   changes_unknown         version
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A row is "seat_no state version", the last the version of its last change. They stand in the order of these. At most
-- `most` and the rest of one change: with something left, ask again since the version that was answered. Of a version of
-- another epoch, or of none yet, nothing is known: then the map is read whole. `message_no` says whether there is another
-- message to everybody.
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
local rows = {}
local function tell(seat_no, changed_in)
  local state = string.match(redis.call("HGET", seats, seat_no) or "FREE", "%u+")
  rows[#rows + 1] = seat_no .. " " .. (state == "PAYING" and "HELD" or state) .. " " .. changed_in
end
local function exact(number)
  return string.format("%.0f", number)
end
local changed = redis.call(
  "ZRANGEBYSCORE", map_changes, "(" .. exact(since), "+inf", "WITHSCORES", "LIMIT", 0, most
)
local count, left = #changed / 2, 0
if count == most then
  -- The last change is told whole, so that all up to the version answered has been heard.
  version = tonumber(changed[#changed])
  while count > 0 and tonumber(changed[2 * count]) == version do
    count = count - 1
  end
  left = redis.call("ZCOUNT", map_changes, "(" .. exact(version), "+inf")
end
for at = 1, count do
  tell(changed[2 * at - 1], exact(tonumber(changed[2 * at])))
end
if count < #changed / 2 then
  for _, seat_no in ipairs(redis.call("ZRANGEBYSCORE", map_changes, exact(version), exact(version))) do
    tell(seat_no, exact(version))
  end
end
return { "changes", version, left, term("message_no"), unpack(rows) }
