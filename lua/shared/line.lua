-- The line: whose token lives, what time has done to it, and the one way in which a token of it ends. It stands on
-- sale, streams and room.
--
-- A live token is WAITING in `waiting`, or called and in `tokens`. What an owner presents is followed to the token that
-- stands for it: a visitor's number to the user it was tied to, a number that gave way to the one that was kept.
--
-- RECORDS, fields of `ties`
--   visitor owner -> user owner|queue_no           in force while that number lives
--   user owner    -> visitor owner,visitor owner…  the newest TIES_MAX of them
--
-- Whoever uses this file declares these keys first, in this order: sale, then
local waiting = KEYS[2]
local alive = KEYS[3]
local tokens = KEYS[4]
local active = KEYS[5]
local skipped = KEYS[6]
local returned = KEYS[7]
local ended_tokens = KEYS[8]
local ended_tokens_at = KEYS[9]
local gone = KEYS[10]
local ties = KEYS[11]
local journal = KEYS[12]

-- A person with more browsers than this loses the tie of the oldest, and with it nothing but that browser's shortcut.
local TIES_MAX = 8
-- A number gives way when a second token of one person turns up; each such step names the number that was kept.
local MOVES_MAX = 8

local function score(set, member)
  return tonumber(redis.call("ZSCORE", set, member) or "0")
end

local function set_of(status)
  return ({ WAITING = waiting, ACTIVE = active, SKIPPED = skipped, RETURNED = returned })[status]
end

-- Changes -------------------------------------------------------------------------------------------------------------

-- Takes a live token out of the sets that its status put it in; one without a status stands in none.
local function take_out(owner, token)
  if token.status == "WAITING" then
    redis.call("ZREM", waiting, owner)
  elseif token.status then
    redis.call("HDEL", tokens, owner)
    redis.call("ZREM", set_of(token.status), owner)
  end
end

-- Gives a live token to another owner: the same place, the same deadline.
local function hand_over(from, to, token)
  local at = score(set_of(token.status), from)
  take_out(from, token)
  redis.call("ZADD", set_of(token.status), at, to)
  if token.status ~= "WAITING" then
    keep_called(tokens, to, token.status, token.queue_no, token.entered, token.admitted_at_ms)
  end
end

-- Ends a token. `status` is EXPIRED or LEFT; with `kept` its owner goes on with that number instead, and whoever
-- still presents this one is led there.
local function end_live(owner, token, status, kept)
  local in_line = token.queue_no > term("serving") -- people behind it count it, until it is among the gone
  local n = next_number("journal", in_line and "gone_seq" or nil)
  take_out(owner, token)
  redis.call("ZREM", alive, token.queue_no)
  if in_line then
    redis.call("ZADD", gone, sale.gone_seq, token.queue_no)
  end
  redis.call("HSET", ended_tokens, token.queue_no, kept and "MOVED|" .. owner .. "|" .. kept or status .. "|" .. owner)
  redis.call("ZADD", ended_tokens_at, now_ms, token.queue_no)
  append(journal, n, "ended", "queue_no", token.queue_no, "owner", owner, "status", status, "at_ms", now_ms)
end

-- Passes over a called token: its slot is free, its place is kept for the recall.
local function skip(owner, token, recall_ends_ms)
  take_out(owner, token)
  redis.call("ZREM", alive, token.queue_no)
  token.status = "SKIPPED"
  keep_called(tokens, owner, "SKIPPED", token.queue_no, false, token.admitted_at_ms or 0)
  redis.call("ZADD", skipped, recall_ends_ms, owner)
end

-- What time alone has done to a token is done now, whether or not a tick came by: nil when it has ended.
local function settle(owner, token)
  if token.status == "ACTIVE" then
    token.deadline_ms = score(active, owner)
    if token.deadline_ms > now_ms then
      return token
    end
    if token.entered then
      end_live(owner, token, "EXPIRED")
      return nil
    end
    skip(owner, token, token.deadline_ms + term("recall_ms"))
  end
  if token.status == "SKIPPED" and score(skipped, owner) <= now_ms then
    end_live(owner, token, "EXPIRED")
    return nil
  end
  return token
end

-- Finding -------------------------------------------------------------------------------------------------------------

-- The live token of exactly this owner, or nil.
local function live_token(owner)
  local queue_no = redis.call("ZSCORE", waiting, owner)
  if queue_no then
    return { status = "WAITING", queue_no = tonumber(queue_no) }
  end
  local token = called_token(tokens, owner)
  return token and settle(owner, token)
end

-- The user that a visitor was tied to, and the number it was for; nil for users and for visitors without a tie.
local function tie_of(owner)
  local record = string.sub(owner, 1, 1) == "v" and redis.call("HGET", ties, owner)
  if not record then
    return nil
  end
  local user, queue_no = string.match(record, "^(.+)|(%d+)$")
  return user, tonumber(queue_no)
end

-- The live token that stands for this owner, and whose it is: the owner's own, or that of the user it is tied to.
local function standing_token(owner)
  local token = live_token(owner)
  if token then
    return token, owner
  end
  local user, tied_no = tie_of(owner)
  token = user and live_token(user)
  if token and token.queue_no == tied_no then
    return token, user
  end
  return nil
end

-- What a presented number has become: { token, owner } of the live token that stands for it, { ended, queue_no, owner }
-- of how it ended, or nil for a number that nothing is known of.
local function follow(owner, queue_no)
  local user = tie_of(owner)
  for _ = 1, MOVES_MAX do
    for _, holder in ipairs({ owner, user }) do
      local token = live_token(holder)
      if token and token.queue_no == queue_no then
        return { token = token, owner = holder }
      end
    end
    local status, of, kept = string.match(redis.call("HGET", ended_tokens, queue_no) or "", "^(%u+)|([^|]+)|?(%d*)$")
    if not status or (of ~= owner and of ~= user) then
      return nil
    end
    if status ~= "MOVED" then
      return { ended = status, queue_no = queue_no, owner = of }
    end
    queue_no = tonumber(kept)
  end
  return nil
end

-- How the public sees a live token.
local function public_status(token)
  return token.status == "ACTIVE" and "ACTIVE" or "WAITING"
end

-- Ties ----------------------------------------------------------------------------------------------------------------

local function visitors_of(user)
  local visitors = {}
  for visitor in string.gmatch(redis.call("HGET", ties, user) or "", "v[^,]+") do
    visitors[#visitors + 1] = visitor
  end
  return visitors
end

-- Ties a visitor to a user; every browser of that user now stands for this number.
local function keep_tie(user, visitor, queue_no)
  local visitors = visitors_of(user)
  local known = false
  for _, each in ipairs(visitors) do
    known = known or each == visitor
  end
  if not known then
    visitors[#visitors + 1] = visitor
    if #visitors > TIES_MAX then
      redis.call("HDEL", ties, table.remove(visitors, 1))
    end
    redis.call("HSET", ties, user, table.concat(visitors, ","))
  end
  for _, each in ipairs(visitors) do
    redis.call("HSET", ties, each, user .. "|" .. queue_no)
  end
end

-- Forgets the ties that were for this number of a user.
local function drop_ties(user, queue_no)
  local visitors, kept = visitors_of(user), {}
  if #visitors == 0 then
    return
  end
  for _, visitor in ipairs(visitors) do
    local _, tied_no = tie_of(visitor)
    if tied_no == queue_no then
      redis.call("HDEL", ties, visitor)
    else
      kept[#kept + 1] = visitor
    end
  end
  if #kept > 0 then
    redis.call("HSET", ties, user, table.concat(kept, ","))
  else
    redis.call("HDEL", ties, user)
  end
end

-- Makes a visitor's live token its user's, and answers the one that stands now: of two the ACTIVE one, else the lower
-- number; the other gives way and leads there.
local function tie_token(user, visitor, token)
  local own = live_token(user)
  local own_is_active, token_is_active = own and own.status == "ACTIVE", token.status == "ACTIVE"
  local keep_own = own and own.queue_no < token.queue_no
  if own_is_active ~= token_is_active then
    keep_own = own_is_active
  end
  if keep_own then
    end_live(visitor, token, "LEFT", own.queue_no)
    token = own
  else
    if own then
      end_live(user, own, "LEFT", token.queue_no)
    end
    local n = next_number("journal")
    hand_over(visitor, user, token)
    append(journal, n, "tied", "queue_no", token.queue_no, "owner", user)
  end
  keep_tie(user, visitor, token.queue_no)
  return token
end
