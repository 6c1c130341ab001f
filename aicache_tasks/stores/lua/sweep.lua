-- Forget processes whose end has passed.
--
-- KEYS[1]   processes by when they may be forgotten, a sorted set; KEYS[2] numbers by process, a hash (in one slot)
-- ARGV[1]   now, epoch s
-- ARGV[2]   how many at most
-- returns   how many went
--
-- A number goes before its end does, so that a sweep that fails between the two is finished by the next.
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for i = 1, #ended do
  redis.call('HDEL', KEYS[2], ended[i])
  redis.call('ZREM', KEYS[1], ended[i])
end
return #ended
