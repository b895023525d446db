-- The load of `nightjar bench ingest` for wrk: NIGHTJAR_BATCH events a request, ids that begin with NIGHTJAR_RUN.
local batch = tonumber(os.getenv("NIGHTJAR_BATCH"))
local run = os.getenv("NIGHTJAR_RUN")
local moment = os.getenv("NIGHTJAR_MOMENT")
local form = '{"event_id":"%s-%d","event_type":"view_item","user_id":"u%d","session_id":"s%d","item_id":"i%d","timestamp":"%s"}'
local head
local sent = 0

function init(arguments)
  head = "POST /v1/events HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\nContent-Type: application/json\r\nContent-Length: "
end

local function event()
  sent = sent + 1
  return string.format(form, run, sent, sent * 7919 % 50000, sent * 7919 % 50000, sent * 104729 % 10000, moment)
end

local function with_head(body)
  return head .. #body .. "\r\n\r\n" .. body
end

function request()
  if batch == 1 then
    return with_head(event())
  end
  local events = {}
  for n = 1, batch do
    events[n] = event()
  end
  return with_head("[" .. table.concat(events, ",") .. "]")
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('NIGHTJAR {"requests":%d,"seconds":%.6f,"errors":%d,"p50_ms":%.3f,"p99_ms":%.3f}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
