-- Picking the best seats that are free: adjacent ones that leave no single seat alone, else adjacent ones, else in the
-- fewest rows. It stands on wish, and looks at a unit of the hall at a time.
--
--   units                  unit_no -> section|row|category_no|block_no|first_position|first_number|length
--   sections, categories   name -> unit_nos as first-last,first-last…
--
-- A unit is a run of adjacent seats that are alike in row, category and block; units stand in the order of the hall, the
-- best first. `bounds` says which units cannot have enough side by side, so that nobody looks at them twice.
--
-- Whoever uses this file declares these keys after those of wish:
local units = KEYS[20]
local sections = KEYS[21]
local categories = KEYS[22]

local UNIT = "^([^|]*)|([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)$"
-- Units that one operation looks at before it asks to be repeated, and those that all operations of one call do.
local LOOKS_MAX, LOOKS_OF_A_CALL_MAX = 64, 256
local looks_of_a_call = 0
-- What the operations of one call have seen: units, which never change; how seats fit into what is free of one; and in
-- which units so many seats would leave somebody alone, which is true until a seat of them is taken or freed.
local known_units, known_fits, known_lonely, known_since = {}, {}, {}, 0
-- Lapsed holds that end before a pick, so that their seats are among those that are picked from.
local LAPSED_FIRST = 4

-- Where to look: pairs of first and last unit_no, in order; nil and its name when there is none of that name.
local function ranges_in(section, category)
  local ranges = { { 0, math.huge } }
  for _, filter in ipairs({ { sections, "section", section }, { categories, "category", category } }) do
    if filter[3] ~= "" then
      local list = redis.call("HGET", filter[1], filter[3])
      if not list then
        return nil, filter[2] .. " " .. filter[3]
      end
      local narrowed, at = {}, 1
      for first, last in string.gmatch(list, "(%d+)-(%d+)") do
        first, last = tonumber(first), tonumber(last)
        while ranges[at] and ranges[at][2] < first do
          at = at + 1
        end
        local here = at
        while ranges[here] and ranges[here][1] <= last do
          narrowed[#narrowed + 1] = { math.max(first, ranges[here][1]), math.min(last, ranges[here][2]) }
          here = here + 1
        end
      end
      ranges = narrowed
    end
  end
  return ranges
end

-- The categories that a tier may be sold in, by number: those with room for the whole request under the tier's cap.
-- nil: any. Else also what falls short of it.
local function categories_of(tier, quantity)
  if tier == "" then
    return nil
  end
  local keys = {}
  for category_no = 1, redis.call("HLEN", categories) do
    keys[category_no] = tier .. "|" .. category_no
  end
  local allowed, most, exists = {}, 0, false
  local counts = #keys > 0 and redis.call("HMGET", tier_counts, unpack(keys)) or {}
  for category_no, record in ipairs(#keys > 0 and redis.call("HMGET", tiers, unpack(keys)) or {}) do
    if record then
      local max = tonumber(string.match(record, "|(%d+)$"))
      local left = max and math.max(0, max - tonumber(counts[category_no] or "0")) or quantity
      allowed[text(category_no)] = left >= quantity or nil
      exists, most = true, math.max(most, left)
    end
  end
  return allowed, exists, most < quantity and quantity .. " " .. text(most) .. " tier " .. tier or nil
end

local function lonely_units(quantity, accessible)
  if known_since ~= swept then
    known_lonely, known_since = {}, swept
  end
  local question = quantity .. "|" .. accessible
  known_lonely[question] = known_lonely[question] or {}
  return known_lonely[question]
end

-- Seats of these units were taken.
local function forget_lonely(found)
  for _, seat in ipairs(found) do
    for _, unit_nos in pairs(known_lonely) do
      unit_nos[tonumber(seat.unit_no)] = nil
    end
  end
end

-- A hall as this wish sees it.
local function open_view(ranges, allowed, access, early, accessible)
  return {
    ranges = ranges, allowed = allowed, access = access, early = early, accessible = accessible,
    bounds = redis.call("GETRANGE", bounds, 0, -1), looks = 0,
  }
end

-- The next unit from this number on that may have so many free seats side by side; nil after the last.
local function next_unit(view, unit_no, least)
  local public = view.early and "" or string.char(64 + least) .. "-" .. string.char(124)
  local blocked = view.access ~= "" and string.char(192 + least) .. "-" .. string.char(252) or ""
  if public .. blocked == "" then
    return nil
  end
  local wanted = "[" .. public .. blocked .. "]"
  for _, range in ipairs(view.ranges) do
    if range[2] >= unit_no then
      local found = string.find(view.bounds, wanted, math.max(unit_no, range[1]) + 1)
      if not found then
        return nil
      end
      if found - 1 <= range[2] then
        return found - 1
      end
    end
  end
  return nil
end

-- A unit and its part of the floor; nil when nothing of it is for this wish.
local function look_at(view, unit_no)
  view.looks, looks_of_a_call = view.looks + 1, looks_of_a_call + 1
  unit_no = tonumber(unit_no)
  local unit = known_units[unit_no]
  if not unit then
    local section, row, category_no, block_no, position, number, length =
      string.match(redis.call("HGET", units, unit_no), UNIT)
    unit = {
      unit_no = unit_no, row = section .. "-" .. row, category_no = category_no, block_no = block_no,
      number = tonumber(number), first = tonumber(position), last = position + length - 1,
    }
    known_units[unit_no] = unit
  end
  if view.allowed and not view.allowed[unit.category_no] or not is_open(unit.block_no, view.access) then
    return nil
  end
  unit.free = redis.call("GETRANGE", floor, unit.first, unit.last)
  return unit
end

-- Whether this operation, and the call that it is part of, has looked at enough for now.
local function is_tired(view)
  return view.looks >= LOOKS_MAX or view.looks > 0 and looks_of_a_call >= LOOKS_OF_A_CALL_MAX
end

local function is_free(free, at)
  return at >= 1 and string.find(free, "^[FA]", at) ~= nil
end

local function is_alone(free, at)
  return is_free(free, at) and not is_free(free, at - 1) and not is_free(free, at + 1)
end

-- Seats left alone by taking those from `first` to `last`: free ones with nobody's free seat beside them.
local function orphans_of(free, first, last)
  local left = is_free(free, first - 1) and not is_free(free, first - 2)
  local right = is_free(free, last + 1) and not is_free(free, last + 2)
  return (left and 1 or 0) + (right and 1 or 0)
end

-- Where in a unit so many adjacent seats are best taken, and how many that leaves alone; nil when nowhere. Accessible
-- seats are kept back from whoever needs none, and so many at least are among those of who does.
local function fit(unit, quantity, accessible)
  local question = quantity .. "|" .. accessible .. "|" .. unit.free
  if known_fits[question] then
    return unpack(known_fits[question])
  end
  local best, fewest
  local at = 1
  while true do
    local first, last = string.find(unit.free, accessible > 0 and "[FA]+" or "F+", at)
    if not first then
      break
    end
    -- Without accessible seats to look for, only a run's two ends can leave nobody alone, or fewer.
    local step = accessible > 0 and 1 or math.max(1, last - quantity + 1 - first)
    for from = first, last - quantity + 1, step do
      local _, found = string.gsub(string.sub(unit.free, from, from + quantity - 1), "A", "")
      if found >= accessible then
        local orphans = orphans_of(unit.free, from, from + quantity - 1)
        if not best or orphans < fewest then
          best, fewest = from, orphans
        end
      end
    end
    at = last + 1
    if fewest == 0 then
      break
    end
  end
  if best then
    known_fits[question] = { best, fewest }
  else
    local longest = 0
    for run in string.gmatch(unit.free, "[FA]+") do
      longest = math.max(longest, math.min(#run, 60))
    end
    redis.call("SETRANGE", bounds, unit.unit_no, string.char((unit.block_no == "0" and 64 or 192) + longest))
  end
  return best, fewest
end

local function seat_at(unit, at)
  return unit.row .. "-" .. text(unit.number + at - 1)
end

local function adjacent(unit, from, quantity)
  local seat_nos = {}
  for at = from, from + quantity - 1 do
    seat_nos[#seat_nos + 1] = seat_at(unit, at)
  end
  return seat_nos
end

-- A unit of this wish, and where and how the seats fit into it.
local function try(view, unit_no, quantity)
  local unit = look_at(view, unit_no)
  if not unit then
    return nil
  end
  local from, orphans = fit(unit, quantity, view.accessible)
  return from and { seat_nos = adjacent(unit, from, quantity), groups = 1, orphans = orphans }
end

-- Adjacent seats, looking on from a unit: the pick, or where to look on, or neither. In the first pass (`level` 1) they
-- must leave nobody alone, and `second` is the first unit in which they fit and do; the next pass begins there.
local function pick_adjacent(view, quantity, level, unit_no, second)
  local lonely = lonely_units(quantity, view.accessible)
  unit_no = next_unit(view, unit_no, quantity)
  while unit_no do
    if is_tired(view) then
      return nil, level .. "|" .. unit_no .. "|" .. second
    end
    if level == 2 or not lonely[unit_no] then
      local pick = try(view, unit_no, quantity)
      if pick and (pick.orphans == 0 or level == 2) then
        pick.level = pick.orphans == 0 and 1 or 2
        return pick
      end
      lonely[unit_no] = pick ~= nil or nil
    end
    second = lonely[unit_no] and second == "" and text(unit_no) or second
    unit_no = next_unit(view, unit_no + 1, quantity)
  end
  if level == 1 and second ~= "" then
    return pick_adjacent(view, quantity, 2, tonumber(second), "")
  end
  return nil, nil
end

-- How many seats of a unit this wish may have, and how many of them are accessible.
local function count_free(unit, accessible)
  local _, ordinary = string.gsub(unit.free, "F", "")
  local _, special = string.gsub(unit.free, "A", "")
  return accessible > 0 and ordinary + special or ordinary, special
end

-- Take so many seats of these units, whole runs before parts of runs; of accessible ones as many as are needed first.
local function take_from(rows, quantity, accessible)
  local seat_nos, groups, orphans = {}, 0, 0
  for _, row in ipairs(rows) do
    for _, unit in ipairs(row.units) do
      unit.left = unit.free
      local at = string.find(unit.left, "A", 1, true)
      while at and accessible > 0 do
        unit.left = string.sub(unit.left, 1, at - 1) .. "X" .. string.sub(unit.left, at + 1)
        accessible, quantity = accessible - 1, quantity - 1
        at = string.find(unit.left, "A", at, true)
      end
    end
  end
  for _, row in ipairs(rows) do
    local runs = {}
    for order, unit in ipairs(row.units) do
      local at = 1
      while true do
        local first, last = string.find(unit.left, row.any and "[FA]+" or "F+", at)
        if not first then
          break
        end
        runs[#runs + 1] = { unit = unit, first = first, length = last - first + 1, order = order * 1000 + first }
        at = last + 1
      end
    end
    table.sort(runs, function(a, b)
      if a.length ~= b.length then
        return a.length > b.length
      end
      return a.order < b.order
    end)
    for _, run in ipairs(runs) do
      local taken = math.min(run.length, quantity)
      if taken > 0 then
        local left = run.unit.left
        run.unit.left =
          string.sub(left, 1, run.first - 1) .. string.rep("X", taken) .. string.sub(left, run.first + taken)
        quantity = quantity - taken
      end
    end
  end
  for _, row in ipairs(rows) do
    for _, unit in ipairs(row.units) do
      for at in string.gmatch(unit.free, "()[FA]") do
        orphans = orphans + (is_alone(unit.left, at) and not is_alone(unit.free, at) and 1 or 0)
      end
      for first, last in string.gmatch(unit.left, "()X+()") do
        groups = groups + 1
        for at = first, last - 1 do
          seat_nos[#seat_nos + 1] = seat_at(unit, at)
        end
      end
    end
  end
  return quantity == 0 and accessible == 0 and { seat_nos = seat_nos, level = 3, groups = groups, orphans = orphans }
end

-- Rows with the most seats for this wish, as they are handed from one repeat to the next.
local function parse_rows(kept)
  local rows = {}
  for count, special, list in string.gmatch(kept, "(%d+):(%d+):([%d+]+)") do
    rows[#rows + 1] = { count = tonumber(count), special = tonumber(special), unit_nos = list }
  end
  return rows
end

-- Of these rows those that are needed: the fewest that have enough accessible seats, and then enough seats.
local function needed_of(rows, quantity, accessible)
  local chosen, order = {}, {}
  for at in ipairs(rows) do
    order[at] = at
  end
  for _, need in ipairs({ { "special", accessible }, { "count", quantity } }) do
    local name, missing = need[1], need[2]
    table.sort(order, function(a, b)
      if rows[a][name] ~= rows[b][name] then
        return rows[a][name] > rows[b][name]
      end
      return a < b
    end)
    for at in pairs(chosen) do
      missing = missing - rows[at][name]
    end
    for _, at in ipairs(order) do
      if missing > 0 and not chosen[at] then
        chosen[at] = true
        missing = missing - rows[at][name]
      end
    end
  end
  local needed = {}
  for at, row in ipairs(rows) do
    needed[#needed + 1] = chosen[at] and row or nil
  end
  return needed
end

-- Seats in the fewest rows, looking on from a unit: the pick, or where to look on, or neither and how many are free.
-- Only a pass that was not interrupted knows that there are too few; `is_last` is one that does not tire.
local function pick_rows(view, quantity, unit_no, kept, is_last)
  local rows, free, whole = parse_rows(kept), 0, unit_no == 0
  local row
  local function close_row()
    if row and row.count > 0 then
      free = free + row.count
      rows[#rows + 1] = row
      rows = #rows > 100 and needed_of(rows, quantity, view.accessible) or rows
    end
  end
  unit_no = next_unit(view, unit_no, 1)
  while unit_no do
    local unit = look_at(view, unit_no)
    if unit and not (row and row.name == unit.row) then
      close_row()
      if row and row.count >= quantity and row.special >= view.accessible then
        return take_from({ row }, quantity, view.accessible)
      end
      row = { name = unit.row, count = 0, special = 0, unit_nos = "", units = {}, any = view.accessible > 0 }
      if not is_last and is_tired(view) then
        local list = {}
        for at, each in ipairs(needed_of(rows, quantity, view.accessible)) do
          list[at] = each.count .. ":" .. each.special .. ":" .. each.unit_nos
        end
        return nil, "3|" .. unit_no .. "|" .. table.concat(list, ",")
      end
    end
    if unit then
      local count, special = count_free(unit, view.accessible)
      row.count, row.special = row.count + count, row.special + special
      row.unit_nos = row.unit_nos .. "+" .. unit_no
      row.units[#row.units + 1] = unit
    end
    unit_no = next_unit(view, unit_no + 1, 1)
  end
  close_row()
  local needed = needed_of(rows, quantity, view.accessible)
  for _, each in ipairs(needed) do
    -- What an earlier repeat saw may have changed.
    local units_now = {}
    for one in string.gmatch(each.unit_nos, "%d+") do
      units_now[#units_now + 1] = look_at(view, one)
    end
    each.units, each.any = units_now, view.accessible > 0
  end
  local pick = take_from(needed, quantity, view.accessible)
  if pick or whole then
    return pick or nil, nil, free
  end
  return nil, "4|0|"
end
