-- Set a field of a hash if it holds what was read from it.
--
-- KEYS[1]   the hash
-- ARGV[1]   the field
-- ARGV[2]   the new value
-- ARGV[3]   the value that was read; absent if the field was not there
-- returns   1 set, 0 not
if redis.call('HGET', KEYS[1], ARGV[1]) ~= (ARGV[3] or false) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
