-- All that is done to what gateways share, each at once and by the server's clock.
--
-- KEYS[1] is the beginning of all names; ARGV[1] says what is done, ARGV[2] with what, as JSON. A
-- gateway that has not said for DEAD seconds that it lives is dead: what it held is free again.

local P, op, a = KEYS[1], ARGV[1], cjson.decode(ARGV[2])
local WINDOW, DEAD, SESSION = 60, 3, 3600
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local GATEWAYS, EPOCH, SEEDING, NAMES = P .. 'gateways', P .. 'epoch', P .. 'seeding', P .. 'names'

local function whole(number) return string.format('%.0f', number) end

-- Who lives.

local function lives(gateway)
  local at = redis.call('ZSCORE', GATEWAYS, gateway)
  return at and tonumber(at) >= now - DEAD
end

-- A hash of numbers by gateway: what those that live hold; the others' goes.
local function held(key, mine)
  local all, sum = redis.call('HGETALL', key), 0
  for i = 1, #all, 2 do
    if lives(all[i]) then
      if all[i] ~= mine then sum = sum + tonumber(all[i + 1]) end
    else
      redis.call('HDEL', key, all[i])
    end
  end
  return sum
end

local function hold(key, gateway, more)
  if more ~= 0 and tonumber(redis.call('HINCRBY', key, gateway, whole(more))) <= 0 then
    redis.call('HDEL', key, gateway)
  end
end

-- What was taken in the minute that ends now: a hash of numbers by the second.

local function taken(key)
  local all, cells, sum = redis.call('HGETALL', key), {}, 0
  for i = 1, #all, 2 do
    local cell, amount = tonumber(all[i]), tonumber(all[i + 1])
    if cell < math.floor(now) - WINDOW then
      redis.call('HDEL', key, all[i])
    else
      cells[#cells + 1] = { cell, amount }
      sum = sum + amount
    end
  end
  return sum, cells
end

local function take(key, amount)
  if amount > 0 then
    redis.call('HINCRBY', key, whole(math.floor(now)), whole(amount))
    redis.call('EXPIRE', key, WINDOW + 2)
  end
end

local function give_back(key, then_, amount)
  local cell = whole(math.floor(then_))
  if redis.call('HEXISTS', key, cell) == 1 then
    redis.call('HINCRBY', key, cell, whole(-amount))
  end
end

-- Seconds until so much more fits; -1 if it never does.
local function wait(limit, wanted, sum, cells)
  local over = sum + wanted - limit
  if over <= 0 then return 0 end
  if wanted > limit then return -1 end
  table.sort(cells, function(one, other) return one[1] < other[1] end)
  for _, cell in ipairs(cells) do
    over = over - cell[2]
    if over <= 0 then return cell[1] + 1 + WINDOW - now end
  end
  return -1
end

-- Budgets: what was spent ever, and of that before this month and this day.

local function today()
  local day = math.floor(now / 86400)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524)
    - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return day, year * 12 + month - 1
end

local DAY, MONTH = today()
local UNITS = { [0] = 's', [1] = 'm' }

local function spent_of(name)
  local key, spent = P .. 'b:' .. name, {}
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do spent[all[i]] = tonumber(all[i + 1]) end
  for _, field in ipairs({ 's', 'm', 'ms', 'mm', 'ds', 'dm', 'day', 'month' }) do
    spent[field] = spent[field] or 0
  end
  return key, spent
end

local function turn(key, spent)
  local news = {}
  if MONTH > spent.month then news.ms, news.mm, news.month = spent.s, spent.m, MONTH end
  if DAY > spent.day then news.ds, news.dm, news.day = spent.s, spent.m, DAY end
  for field, value in pairs(news) do
    spent[field] = value
    redis.call('HSET', key, field, whole(value))
  end
end

local function spend(name, tokens, money, day, month)
  if tokens == 0 and money == 0 then return end
  if day < 0 then day, month = DAY, MONTH end
  local key, spent = spent_of(name)
  turn(key, spent)
  redis.call('SADD', NAMES, name)
  for field, amount in pairs({ s = tokens, m = money }) do
    redis.call('HINCRBY', key, field, whole(amount))
    if month < spent.month then redis.call('HINCRBY', key, 'm' .. field, whole(amount)) end
    if day < spent.day then redis.call('HINCRBY', key, 'd' .. field, whole(amount)) end
  end
end

-- How it stands with the limits of a minute, for each scope.
local function standings(scopes)
  local told = {}
  for i, scope in ipairs(scopes) do
    local one = { 0, 0, 0, 0 }
    for j, kind in ipairs({ 'r:', 't:' }) do
      if scope[j + 1] >= 0 then
        local sum, cells = taken(P .. kind .. scope[1])
        local last = 0
        for _, cell in ipairs(cells) do last = math.max(last, cell[1]) end
        one[j * 2 - 1] = sum
        one[j * 2] = last > 0 and last + 1 + WINDOW - now or 0
      end
    end
    told[i] = one
  end
  return told
end

local function take_all(scope, gateway, amount)
  if scope[4] >= 0 then hold(P .. 'o:' .. scope[1], gateway, 1) end
  if #scope[5] > 0 then
    hold(P .. 'hs:' .. scope[1], gateway, amount[3])
    hold(P .. 'hm:' .. scope[1], gateway, amount[4])
  end
end

-- Why a scope cannot give so much: what, after how long, how much is used, which budget, if spent.
local function refuses(scope, amount)
  local name, requests, tokens, concurrent, caps = unpack(scope)
  if concurrent >= 0 then
    local open = held(P .. 'o:' .. name)
    if open >= concurrent then
      return { 'concurrent', concurrent == 0 and -1 or 1, 1, open, -1, false }
    end
  end
  for _, one in ipairs({ { 'requests', 'r:', requests, amount[1] }, { 'tokens', 't:', tokens, amount[2] } }) do
    if one[3] >= 0 then
      local sum, cells = taken(P .. one[2] .. name)
      local after = wait(one[3], one[4], sum, cells)
      if after ~= 0 then return { one[1], after, one[4], sum, -1, false } end
    end
  end
  if #caps > 0 then
    local key, spent = spent_of(name)
    turn(key, spent)
    for i, cap in ipairs(caps) do
      local unit, per, limit = UNITS[cap[1]], cap[2], cap[3]
      local wanted = amount[3 + cap[1]]
      local used = spent[unit]
      if per == 'month' then used = used - spent['m' .. unit] end
      if per == 'day' then used = used - spent['d' .. unit] end
      local aside = held(P .. 'h' .. unit .. ':' .. name)
      if wanted > 0 and used + aside + wanted > limit then
        local over = used + wanted > limit
        -- As texts: as numbers cjson rounds them.
        return { 'budget', over and -1 or 1, whole(wanted), whole(used + aside), i - 1, over }
      end
    end
  end
  return nil
end

local does = {}

-- A gateway comes, or comes again under another name.
function does.join()
  if a.was ~= '' then redis.call('ZREM', GATEWAYS, a.was) end
  redis.call('ZREMRANGEBYSCORE', GATEWAYS, '-inf', now - DEAD)
  local epoch = redis.call('GET', EPOCH)
  if a.ledger and redis.call('ZCARD', GATEWAYS) == 0 then epoch = false end
  if epoch then
    redis.call('ZADD', GATEWAYS, now, a.g)
    return { 'joined', epoch }
  end
  if redis.call('SET', SEEDING, a.g, 'NX', 'PX', 10000) then return { 'seed', '' } end
  return { 'wait', '' }
end

-- What was spent before, as the ledger has it: whatever was known of that is forgotten.
function does.seed()
  if redis.call('GET', SEEDING) ~= a.g then return { 'wait', '' } end
  for _, name in ipairs(redis.call('SMEMBERS', NAMES)) do redis.call('DEL', P .. 'b:' .. name) end
  redis.call('DEL', NAMES, SEEDING)
  for _, one in ipairs(a.spent) do
    local day, month = one[5] and DAY or 0, one[4] and MONTH or 0
    spend(one[1], one[2], one[3], day, month)
  end
  redis.call('SET', EPOCH, a.g)
  redis.call('ZADD', GATEWAYS, now, a.g)
  return { 'joined', a.g }
end

-- It lives. How many do, and which of them it is.
function does.beat()
  if not lives(a.g) or redis.call('GET', EPOCH) ~= a.e then return { 'gone' } end
  redis.call('ZADD', GATEWAYS, now, a.g)
  redis.call('ZREMRANGEBYSCORE', GATEWAYS, '-inf', now - DEAD)
  local all = redis.call('ZRANGE', GATEWAYS, 0, -1)
  table.sort(all)
  local rank = 0
  for i, one in ipairs(all) do
    if one == a.g then rank = i - 1 end
  end
  return { 'lives', rank, #all }
end

function does.leave()
  redis.call('ZREM', GATEWAYS, a.g)
  return { 'left' }
end

-- Limits.

function does.reserve()
  if not lives(a.g) or redis.call('GET', EPOCH) ~= a.e then return { 'gone' } end
  for i, scope in ipairs(a.scopes) do
    local why = refuses(scope, a.amount)
    if why then return { 'refused', i - 1, why, standings(a.scopes) } end
  end
  for _, scope in ipairs(a.scopes) do
    if scope[2] >= 0 then take(P .. 'r:' .. scope[1], a.amount[1]) end
    if scope[3] >= 0 then take(P .. 't:' .. scope[1], a.amount[2]) end
    take_all(scope, a.g, a.amount)
  end
  return { 'given', now, DAY, MONTH, standings(a.scopes) }
end

-- What was given before this gateway came again is still held.
function does.adopt()
  for _, scope in ipairs(a.scopes) do
    local amount = a.settled and { 0, 0, 0, 0 } or a.amount
    take_all(scope, a.g, amount)
  end
  return { 'held' }
end

function does.settle()
  for _, scope in ipairs(a.scopes) do
    for i, kind in ipairs({ 'r:', 't:' }) do
      local more = a.used[i] - a.amount[i]
      if scope[i + 1] >= 0 then
        if more > 0 then take(P .. kind .. scope[1], more) end
        if more < 0 then give_back(P .. kind .. scope[1], a['then'], -more) end
      end
    end
    if #scope[5] > 0 then
      hold(P .. 'hs:' .. scope[1], a.g, -a.amount[3])
      hold(P .. 'hm:' .. scope[1], a.g, -a.amount[4])
    end
    spend(scope[1], a.used[3], a.used[4], a.day, a.month)
  end
  return { 'settled', standings(a.scopes) }
end

function does.release()
  for _, scope in ipairs(a.scopes) do
    if scope[4] >= 0 then hold(P .. 'o:' .. scope[1], a.g, -1) end
  end
  return { 'released' }
end

-- What was spent while nobody could be told: not if the ledger has told it meanwhile.
function does.owe()
  if redis.call('GET', EPOCH) ~= a.e then return { 'gone' } end
  for _, one in ipairs(a.spent) do spend(one[1], one[2], one[3], one[4], one[5]) end
  return { 'spent' }
end

-- Slots of upstreams: how many each gateway holds, by the upstream.

function does.take()
  if not lives(a.g) then return { 'gone' } end
  local key = P .. 'u:' .. a.u
  local others = held(key, a.g)
  if a.slots >= 0 and others + a.n - a.wide >= a.slots then return { 'full', others } end
  redis.call('HSET', key, a.g, whole(a.n))
  return { 'taken', others }
end

function does.hold()
  local key = P .. 'u:' .. a.u
  if a.n > 0 then redis.call('HSET', key, a.g, whole(a.n)) else redis.call('HDEL', key, a.g) end
  return { 'held' }
end

function does.others()
  local told = {}
  for i, name in ipairs(a.us) do told[i] = held(P .. 'u:' .. name, a.g) end
  return told
end

-- Which upstream has served a session.

function does.remember()
  redis.call('SET', P .. 's:' .. a.s, a.u, 'EX', SESSION)
  return { 'kept' }
end

function does.recall()
  return { redis.call('GET', P .. 's:' .. a.s) or '' }
end

return cjson.encode(does[op]())
