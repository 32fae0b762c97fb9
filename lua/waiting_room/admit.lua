#!lua
-- Let the head of the line in, as far as both caps allow; end what has lapsed; trim what is no longer asked for.
--
-- Skipped people who came back go first, then the line. Whoever's promised poll is overdue is passed over, and skipped;
-- somebody of whom nothing was noted counts as alive. Holds are left alone.
--
-- USES
--   sale
--   streams
--   room
--   line
-- KEYS
--   sale             hash    the sale's terms and counters
--   waiting          zset    owner -> queue number
--   alive            zset    queue number, scored by when its promised poll is overdue
--   tokens           hash    owner -> called token
--   active           zset    owner of each ACTIVE token, scored by when its entry or session lapses
--   skipped          zset    owner of each skipped token, scored by when its recall lapses
--   returned         zset    owner -> queue number of skipped people who came back
--   ended_tokens     hash    queue_no -> how it ended
--   ended_tokens_at  zset    queue_no, scored by the millisecond it ended
--   gone             zset    queue numbers above serving that left the line, scored by the order in which they did
--   ties             hash    visitor owner -> user owner
--   journal          stream  admitted; ended for each token that lapsed
--   admissions       hash    second -> people admitted in it
-- ARGV
--   epoch
--   most             people looked at, tokens ended and records trimmed, each at most so many
--   poll_max_ms      the longest poll that is ever promised
--   grace_ms         how long after a promised poll it counts as overdue
-- RETURNS
--   admitted         count serving skipped expired waiting more
--   sale_unknown
--   stale_epoch      epoch
--   sale_rebuilding
--
-- Safe to repeat: the caps count what was admitted before.
local waiting = KEYS[2]
local alive = KEYS[3]
local tokens = KEYS[4]
local active = KEYS[5]
local skipped = KEYS[6]
local returned = KEYS[7]
local ended_tokens = KEYS[8]
local ended_tokens_at = KEYS[9]
local gone = KEYS[10]
local journal = KEYS[12]
local admissions = KEYS[13]
local epoch = ARGV[1]
local most = tonumber(ARGV[2])
local poll_max_ms = tonumber(ARGV[3])
local grace_ms = tonumber(ARGV[4])

local KEPT_MS = 3600000 -- an ended token answers for an hour

local refusal = unavailable(epoch)
if refusal then return refusal end

-- What has lapsed ends first: its slots are free for the people below.
local expired, skips = 0, 0
local function settle_lapsed(set)
  local owners = redis.call("ZRANGEBYSCORE", set, "-inf", now_ms, "LIMIT", 0, most)
  for _, owner in ipairs(owners) do
    if settle(owner, called_token(tokens, owner)) then
      skips = skips + 1
    else
      expired = expired + 1
    end
  end
  return #owners
end
local lapsed = math.max(settle_lapsed(active), settle_lapsed(skipped))

-- Check: who is next, within both caps. The rate counts this second and the 60 before it: 60 alone would let a whole
-- minute's worth in at the end of one second and again at the beginning of the sixtieth after it.
local second = math.floor(now_ms / 1000)
local admitted_lately, old_seconds = 0, {}
local counts = redis.call("HGETALL", admissions)
for at = 1, #counts, 2 do
  if tonumber(counts[at]) >= second - 60 then
    admitted_lately = admitted_lately + counts[at + 1]
  else
    old_seconds[#old_seconds + 1] = counts[at]
  end
end
local quota = 0
if sale.room == "open" or sale.room == "draining" then
  quota = math.min(
    term("active_max") - redis.call("ZCARD", active),
    term("admitted_per_minute_max") - admitted_lately
  )
end
local called, absent, looked_at = {}, {}, 0
local function look(set, status, last_no)
  local from = 0
  while #called < quota and looked_at < most do
    local want = math.min(quota - #called, most - looked_at)
    local people = redis.call("ZRANGEBYSCORE", set, "-inf", last_no, "WITHSCORES", "LIMIT", from, want)
    if #people == 0 then
      return
    end
    for at = 1, #people, 2 do
      local token = { owner = people[at], queue_no = tonumber(people[at + 1]), status = status }
      local overdue_at_ms = redis.call("ZSCORE", alive, token.queue_no)
      token.overdue_at_ms = tonumber(overdue_at_ms or now_ms + poll_max_ms + grace_ms)
      local list = token.overdue_at_ms > now_ms and called or absent
      list[#list + 1] = token
    end
    from, looked_at = from + #people / 2, looked_at + #people / 2
  end
end
look(returned, "RETURNED", "+inf")
look(waiting, "WAITING", sale.room == "draining" and term("draining_no") > 0 and term("draining_no") or "+inf")

-- Change. The first deadline leaves the whole entry time after the poll that was promised to this person.
local serving = term("serving")
for _, token in ipairs(absent) do
  serving = math.max(serving, token.queue_no)
  skip(token.owner, token, now_ms + term("recall_ms"))
end
if #called > 0 then
  local n = next_number("journal")
  local queue_nos = {}
  for at, token in ipairs(called) do
    serving = math.max(serving, token.queue_no)
    queue_nos[at] = token.queue_no
    take_out(token.owner, token)
    redis.call("ZREM", alive, token.queue_no)
    keep_called(tokens, token.owner, "ACTIVE", token.queue_no, false, now_ms)
    redis.call("ZADD", active, math.max(now_ms, token.overdue_at_ms - grace_ms) + term("entry_ms"), token.owner)
  end
  redis.call("HINCRBY", admissions, second, #called)
  append(journal, n, "admitted", "queue_nos", table.concat(queue_nos, ","), "at_ms", now_ms)
end
if serving > term("serving") then
  set_term("serving", serving)
end

-- Trim: ended tokens after their hour with the ties that led to them, seconds out of the window, departures passed by.
local forgotten = redis.call("ZRANGEBYSCORE", ended_tokens_at, "-inf", now_ms - KEPT_MS, "LIMIT", 0, most)
for _, queue_no in ipairs(forgotten) do
  local status, owner = string.match(redis.call("HGET", ended_tokens, queue_no) or "", "^(%u+)|([^|]+)")
  if status and status ~= "MOVED" then -- a number that gave way has no ties: they went over to the one that was kept
    drop_ties(owner, tonumber(queue_no))
  end
  redis.call("HDEL", ended_tokens, queue_no)
  redis.call("ZREM", ended_tokens_at, queue_no)
end
if #old_seconds > 0 then
  redis.call("HDEL", admissions, unpack(old_seconds))
end
local passed = redis.call("ZCARD", gone) == 0 and serving or math.min(serving, term("gone_trimmed_no") + most)
if passed > term("gone_trimmed_no") then
  for queue_no = term("gone_trimmed_no") + 1, passed do
    redis.call("ZREM", gone, queue_no)
  end
  set_term("gone_trimmed_no", passed)
end

local more = (lapsed == most or #forgotten == most or (looked_at == most and #called < quota)) and 1 or 0
local in_line = redis.call("ZCARD", waiting) + redis.call("ZCARD", returned)
return { "admitted", #called, serving, skips + #absent, expired, in_line, more }
